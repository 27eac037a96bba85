# `make demo`: a photograph to a 10 kB file and back. `make test`: everything. Nothing else has to be installed by hand but Rust.

CARGO ?= cargo
VENV := .venv
ORT_VERSION := 1.31.1
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-cache-dir
PICTURE := tests/pictures/dog.png

.PHONY: demo test lint packages runtime exporters install install-gst uninstall-gst bench clean

demo:
	$(CARGO) build --release -p sdl-cli
	mkdir -p demo
	target/release/sdl encode $(PICTURE) demo/photo.sdl --target-size 10000
	target/release/sdl decode demo/photo.sdl demo/photo.png
	target/release/sdl info demo/photo.sdl
	$(CARGO) run --release -p sdl-tests --example demo -- $(PICTURE) demo/photo.sdl demo

# Debian packages that the tests need: GStreamer, Python for the wheel of ONNX Runtime, and for the bench other codecs and a browser.
BENCH_PACKAGES := libjpeg-turbo-progs webp libavif-bin libjxl-tools chromium
PACKAGES := python3 python3-venv $(BENCH_PACKAGES) $(shell grep -v '^\#' gst-plugin/apt-packages.txt)
packages:
	@dpkg -s $(PACKAGES) >/dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); }

# ONNX Runtime from its Python wheel, into the checkout; the tests find it by ORT_DYLIB_PATH.
runtime: packages $(VENV)/ort-$(ORT_VERSION)
$(VENV)/ort-$(ORT_VERSION):
	/usr/bin/python3 -m venv $(VENV)
	$(PIP) onnxruntime==$(ORT_VERSION)
	touch $@

# What turns checkpoints into bundles (onnx/export): PyTorch and diffusers, into the same place. PyTorch's own index has it without CUDA, a tenth of
# the size; where that is not reachable, PyPI has it.
REQUIREMENTS := onnx/export/requirements.txt
EXPORTERS := $(VENV)/exporters-$(shell sha256sum $(REQUIREMENTS) | cut -c 1-12)
exporters: runtime $(EXPORTERS)
$(EXPORTERS):
	$(PIP) --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu $$(grep ^torch== $(REQUIREMENTS)) 2>/dev/null || true
	$(PIP) -r $(REQUIREMENTS)
	# The compiler for GPUs, a gigabyte, came along from PyPI and is not asked for anything here.
	$(VENV)/bin/pip uninstall --quiet --yes triton 2>/dev/null || true
	touch $@

lint: packages
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

test: runtime exporters lint
	tests/run

bench:
	$(CARGO) bench -p image-sdl

install:
	$(CARGO) install --path format/cli

# Into the user's own plugin folder.
GST_DIR = $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/gstreamer-1.0/plugins
install-gst:
	$(CARGO) build --release -p gst-plugin-sdl
	install -D -m 755 target/release/libgstsdl.so $(GST_DIR)/libgstsdl.so
	gst-inspect-1.0 --exists --atleast-version=0.1 sdlenc

uninstall-gst:
	rm -f $(GST_DIR)/libgstsdl.so

clean:
	$(CARGO) clean
	rm -rf demo $(VENV)
