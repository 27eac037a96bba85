# `make demo`: a photograph to a 10 kB file and back. `make test`: everything. Nothing else has to be installed by hand but Rust.

CARGO ?= cargo
VENV := .venv
PYTHON := $(VENV)/bin/python
ORT_VERSION := 1.31.1
PICTURE := tests/pictures/dog.png

.PHONY: demo test lint runtime gst-packages install install-gst uninstall-gst bench clean

demo:
	$(CARGO) build --release -p sdl-cli
	mkdir -p demo
	target/release/sdl encode $(PICTURE) demo/photo.sdl --target-size 10000
	target/release/sdl decode demo/photo.sdl demo/photo.png
	target/release/sdl info demo/photo.sdl
	$(CARGO) run --release -p sdl-tests --example demo -- $(PICTURE) demo/photo.sdl demo

# ONNX Runtime from its Python wheel, into the checkout; the tests find it by ORT_DYLIB_PATH.
runtime: $(VENV)/ort-$(ORT_VERSION)
$(VENV)/ort-$(ORT_VERSION):
	command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) --no-print-directory python-packages
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check onnxruntime==$(ORT_VERSION) onnx==1.23.2
	touch $@

python-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings

test: runtime lint
	tests/run

bench:
	$(CARGO) bench -p image-sdl

install:
	$(CARGO) install --path format/cli

clean:
	$(CARGO) clean
	rm -rf demo $(VENV)
