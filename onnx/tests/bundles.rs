//! Bundles: packing, identity, damage, loading, the store.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use common::{backends, data, with};
use sdl_onnx::{Backend, Bundle, Error, RunOptions, Store, TensorView, role};
use tempfile::TempDir;

const MANIFEST: &str = r#"
format = 1
name = "tiny"
version = "1.0"
licence = "CC0-1.0"
source = "tests/data/make.py"

[latent]
channels = 16
stride = 2

[pixels]
range = [0, 255]
exact = true

[graphs.synthesis]
file = "synthesis.onnx"
inputs = ["latent"]
outputs = [{ name = "pixels", rank = 4 }]

[graphs.denoiser]
file = "graphs/denoiser.onnx"
inputs = ["sample", "timestep", "embedding"]

[graphs.wide]
file = "graphs/external.onnx"
external = ["graphs/external.onnx.data"]

[denoiser]
prediction = "v"
conditions = [{ input = "embedding", file = "embedding.bin", shape = [1, 1, 1, 1] }]

[tables]
file = "tables.bin"
"#;

/// A folder with a whole bundle, whose manifest went through `edit`.
fn folder(edit: impl Fn(&str) -> String) -> TempDir {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("graphs")).unwrap();
    for (from, to) in [
        ("integer_decoder.onnx", "synthesis.onnx"),
        ("denoiser.onnx", "graphs/denoiser.onnx"),
        ("external.onnx", "graphs/external.onnx"),
        ("external.onnx.data", "graphs/external.onnx.data"),
    ] {
        std::fs::copy(data(from), path.join(to)).unwrap();
    }
    std::fs::write(path.join("bundle.toml"), edit(MANIFEST)).unwrap();
    std::fs::write(path.join("embedding.bin"), 0.5f32.to_le_bytes()).unwrap();
    std::fs::write(path.join("tables.bin"), [1, 2, 3]).unwrap();
    std::fs::write(path.join(".DS_Store"), "not part of it").unwrap();
    folder
}

fn packed(folder: &Path) -> (TempDir, PathBuf) {
    let out = TempDir::new().unwrap();
    let path = out.path().join("tiny.sdlm");
    Bundle::write_sdlm(folder, &path).unwrap();
    (out, path)
}

fn refusal(path: &Path) -> String {
    Bundle::open(path).unwrap_err().to_string()
}

#[test]
fn a_folder_its_archive_and_the_same_bytes_in_the_program_are_one_bundle() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    let from_folder = Bundle::open(folder.path()).unwrap();
    let from_file = Bundle::open(&path).unwrap();
    let bytes: &'static [u8] = Box::leak(std::fs::read(&path).unwrap().into_boxed_slice());
    let from_static = Bundle::from_static("built-in", bytes).unwrap();
    assert_eq!(from_folder.id(), from_file.id());
    assert_eq!(from_folder.id(), from_static.id());
    assert_eq!(from_folder.manifest(), from_static.manifest());
    for bundle in [&from_folder, &from_file, &from_static] {
        assert_eq!(&bundle.tables().unwrap().unwrap()[..], [1, 2, 3]);
        let conditions = bundle.conditions().unwrap();
        assert_eq!(conditions[0].0, "embedding");
        assert_eq!(conditions[0].1.as_f32().unwrap(), [0.5]);
        assert!(bundle.has(role::SYNTHESIS) && !bundle.has(role::ANALYSIS));
    }
    assert_eq!(from_file.id().to_string().len(), 64);
    assert_eq!(from_file.id().to_string().parse::<sdl_onnx::BundleId>().unwrap(), from_file.id());
    assert_eq!(from_file.id().short(), from_file.id().as_bytes()[..8]);
}

/// Follows the documentation of `BundleId`, not its code.
#[test]
fn the_id_is_what_its_documentation_says() {
    let folder = folder(str::to_owned);
    let mut names = vec![
        "bundle.toml",
        "embedding.bin",
        "graphs/denoiser.onnx",
        "graphs/external.onnx",
        "graphs/external.onnx.data",
        "synthesis.onnx",
        "tables.bin",
    ];
    names.sort_unstable();
    let mut all = b"sdl bundle 1\n".to_vec();
    for name in names {
        let content = std::fs::read(folder.path().join(name)).unwrap();
        all.extend((name.len() as u64).to_le_bytes());
        all.extend(name.as_bytes());
        all.extend((content.len() as u64).to_le_bytes());
        all.extend(blake3::hash(&content).as_bytes());
    }
    assert_eq!(Bundle::open(folder.path()).unwrap().id().as_bytes(), blake3::hash(&all).as_bytes());
}

#[test]
fn packing_twice_gives_the_same_bytes() {
    let (one, other) = (folder(str::to_owned), folder(str::to_owned));
    let ((_a, one), (_b, other)) = (packed(one.path()), packed(other.path()));
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap());
}

#[test]
fn what_another_zip_program_stored_is_a_bundle_and_what_it_compressed_is_not() {
    let folder = folder(str::to_owned);
    let out = TempDir::new().unwrap();
    let script = "
import sys, os, zipfile
folder, stored, deflated = sys.argv[1:]
for path, method in ((stored, zipfile.ZIP_STORED), (deflated, zipfile.ZIP_DEFLATED)):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for root, _, files in os.walk(folder):
            for file in files:
                if not file.startswith('.'):
                    full = os.path.join(root, file)
                    archive.write(full, os.path.relpath(full, folder))
";
    let (stored, deflated) = (out.path().join("stored.sdlm"), out.path().join("deflated.sdlm"));
    let python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(folder.path())
        .arg(&stored)
        .arg(&deflated)
        .status();
    if !python.is_ok_and(|status| status.success()) {
        eprintln!("\n=== SKIPPED: no python3 to write zip files with ===\n");
        return;
    }
    assert_eq!(Bundle::open(&stored).unwrap().id(), Bundle::open(folder.path()).unwrap().id());
    assert!(refusal(&deflated).contains("is compressed (method 8)"), "{}", refusal(&deflated));
}

#[test]
fn a_damaged_archive_is_refused_wherever_the_damage_is() {
    let folder = folder(str::to_owned);
    let (keep, path) = packed(folder.path());
    let good = std::fs::read(&path).unwrap();
    let broken = keep.path().join("broken.sdlm");
    let id = Bundle::open(&path).unwrap().id();
    for at in (0..good.len()).step_by(13) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&broken, &bytes).unwrap();
        // Padding and dates mean nothing; anything else is found.
        match Bundle::open(&broken) {
            Ok(bundle) => assert_eq!(bundle.id(), id, "byte {at}"),
            Err(error) => assert!(error.to_string().contains("broken.sdlm"), "{error}"),
        }
    }
    for length in (0..good.len()).step_by(97) {
        std::fs::write(&broken, &good[..length]).unwrap();
        assert!(refusal(&broken).contains("broken.sdlm is damaged"), "{}", refusal(&broken));
    }
    std::fs::write(&broken, [&good[..], b"\n"].concat()).unwrap();
    assert!(refusal(&broken).contains("no zip file, or it is cut off"));
}

#[test]
fn names_that_lead_out_of_the_archive_or_come_twice_are_refused() {
    let folder = folder(str::to_owned);
    let (keep, path) = packed(folder.path());
    let good = std::fs::read(&path).unwrap();
    let renamed = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = good.clone();
        for at in 0..bytes.len() - from.len() {
            // Not in the manifest, which names its files in quotes.
            if &bytes[at..at + from.len()] == from.as_bytes() && bytes[at - 1] != b'"' {
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            }
        }
        let broken = keep.path().join("renamed.sdlm");
        std::fs::write(&broken, bytes).unwrap();
        refusal(&broken)
    };
    assert!(renamed("tables.bin", "../les.bin").contains("`../les.bin` has a name that is not allowed"));
    assert!(renamed("tables.bin", "/etc/passw").contains("not allowed"));
    assert!(renamed("tables.bin", "c:\\les.bin"[..10].trim()).contains("not allowed"));
    assert!(renamed("embedding.bin", "synthesis.onn").contains("which is not in the bundle"));
    assert!(renamed("graphs/external.onnx", "graphs/denoiser.onnx").contains("is there twice"));
}

#[test]
fn a_manifest_that_does_not_fit_is_refused_in_words() {
    let open = |from: &str, to: &str| {
        assert!(MANIFEST.contains(from), "{from}");
        refusal(folder(|text| text.replace(from, to)).path())
    };
    assert!(open("format = 1", "format = 2").contains("has format 2"));
    assert!(
        open("\"tables.bin\"", "\"table.bin\"")
            .contains("it speaks of `table.bin`, which is not in the bundle")
    );
    assert!(open("\"tables.bin\"", "\"../../etc/passwd\"").contains("which is not in the bundle"));
    assert!(open("[\"graphs/external.onnx.data\"]", "[\"tables.bin\"]").contains("must be in the folder of"));
    assert!(
        open("format = 1", "format = 1\nsums = { \"tables.bin\" = \"00\" }")
            .contains("and bundle.toml says 00")
    );
    assert!(open("stride = 2", "stride = 0").contains("`latent.stride`"));
    let nothing = TempDir::new().unwrap();
    assert!(refusal(nothing.path()).contains("it has no bundle.toml"));
    assert!(refusal(&nothing.path().join("absent.sdlm")).contains("cannot open the bundle"));
}

#[test]
fn a_graph_that_is_not_what_its_manifest_says_is_refused() {
    let load = |role: &str, from: &str, to: &str| {
        assert!(MANIFEST.contains(from), "{from}");
        let folder = folder(|text| text.replace(from, to));
        let bundle = Bundle::open(folder.path()).unwrap();
        bundle.graph(role, &with(Backend::Rust, 1)).unwrap_err().to_string()
    };
    let missing = load("synthesis", "[\"latent\"]", "[\"y\"]");
    assert!(missing.contains("declares the input `y`, and the graph has latent"), "{missing}");
    assert!(load("synthesis", "rank = 4", "rank = 3").contains("3 dimensions, and the graph gives it 4"));
    assert!(
        load("denoiser", "\"timestep\", ", "")
            .contains("an input `timestep` that bundle.toml does not declare")
    );
    let first = load("denoiser", "[\"sample\", \"timestep\",", "[\"timestep\", \"sample\",");
    assert!(first.contains("`timestep` has 1 dimensions, and 4 are needed"), "{first}");
    assert!(
        load("analysis", "format = 1", "format = 1")
            .contains("no graph for `analysis`; it has denoiser, synthesis, wide")
    );
}

#[test]
fn a_graph_reads_no_file_that_its_manifest_does_not_declare() {
    let folder = folder(|text| text.replace("external = [\"graphs/external.onnx.data\"]", ""));
    let (_keep, path) = packed(folder.path());
    for backend in backends() {
        for path in [folder.path(), &path] {
            let bundle = Bundle::open(path).unwrap();
            let message = bundle.graph("wide", &with(backend, 1)).unwrap_err().to_string();
            assert!(message.contains("the file `external.onnx.data`, which is not declared"), "{message}");
        }
    }
}

#[test]
fn a_graph_without_an_input_or_an_output_is_refused() {
    let folder =
        folder(|text| text.replace("[graphs.wide]", "[graphs.empty]\nfile = \"empty.onnx\"\n[graphs.wide]"));
    let tensor = common::field(2, &common::field(1, &[&[8, 1][..], &common::field(2, b"")].concat()));
    let port = [common::field(1, b"x"), tensor].concat();
    // Only an input, and only an output, which is a constant.
    let constant = [vec![8, 1, 16, 1], common::field(9, &[0; 4]), common::field(8, b"x")].concat();
    let graphs = [common::field(11, &port), [common::field(5, &constant), common::field(12, &port)].concat()];
    for graph in graphs {
        std::fs::write(folder.path().join("empty.onnx"), common::model(&graph)).unwrap();
        let bundle = Bundle::open(folder.path()).unwrap();
        for backend in backends() {
            let message = bundle.graph("empty", &with(backend, 1)).unwrap_err().to_string();
            // ONNX Runtime itself refuses to load some of them.
            let is_known =
                message.contains("the graph has no ") || message.contains("ONNX Runtime cannot load");
            assert!(is_known, "{backend}: {message}");
        }
    }
}

#[test]
fn every_kind_of_bundle_runs_on_every_engine() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    let bytes: &'static [u8] = Box::leak(std::fs::read(&path).unwrap().into_boxed_slice());
    let mut results = Vec::new();
    for backend in backends() {
        for bundle in [
            Bundle::open(folder.path()).unwrap(),
            Bundle::open(&path).unwrap(),
            Bundle::from_static("s", bytes).unwrap(),
        ] {
            let options = with(backend, 1);
            let synthesis = bundle.graph(role::SYNTHESIS, &options).unwrap();
            let latent: Vec<u8> = (0..16 * 6).map(|value| (value * 37 % 256) as u8).collect();
            let view = TensorView::u8(&[1, 16, 2, 3], &latent).unwrap();
            results.push(synthesis.run(&[("latent", view)], &["pixels"]).unwrap());
            let denoiser = bundle.graph(role::DENOISER, &options).unwrap();
            let names: Vec<&str> = denoiser.inputs().iter().map(|input| input.name.as_str()).collect();
            assert_eq!(names, ["sample", "timestep", "embedding"], "the order of the manifest");
            let wide = bundle.graph("wide", &options).unwrap();
            let view = TensorView::f32(&[1, 4, 1, 1], &[1.0; 4]).unwrap();
            assert!(wide.run(&[("x", view)], &["y"]).is_ok());
        }
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn callers_who_want_the_same_graph_get_the_same_one() {
    let folder = folder(|text| text.replace("\"tiny\"", "\"shared\""));
    let (one, other) = (Bundle::open(folder.path()).unwrap(), Bundle::open(folder.path()).unwrap());
    let options = with(Backend::Rust, 1);
    const CALLERS: usize = 8;
    let together = Barrier::new(CALLERS);
    let graphs: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (bundle, options, together) =
                    (if caller % 2 == 0 { &one } else { &other }, &options, &together);
                scope.spawn(move || {
                    together.wait();
                    bundle.graph(role::SYNTHESIS, options).unwrap()
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert!(graphs.iter().all(|graph| Arc::ptr_eq(graph, &graphs[0])));
    let more_threads = RunOptions { threads: 2, ..options.clone() };
    assert!(!Arc::ptr_eq(&one.graph(role::SYNTHESIS, &more_threads).unwrap(), &graphs[0]));
    let weak = Arc::downgrade(&graphs[0]);
    drop(graphs);
    assert!(weak.upgrade().is_none(), "nobody uses it: it is gone");
    assert!(one.graph(role::SYNTHESIS, &options).is_ok());
}

#[test]
fn a_bundle_that_changes_after_it_was_opened_is_noticed() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    let bundle = Bundle::open(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&path, bytes).unwrap();
    assert!(
        bundle
            .read("tables.bin")
            .unwrap_err()
            .to_string()
            .contains("has changed since the bundle was opened")
    );
}

#[test]
fn the_store_imports_lists_and_finds() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    let home = TempDir::new().unwrap();
    let models = home.path().join("deep").join("models");
    let store = Store::at([models.clone(), home.path().join("absent")]);
    assert!(store.list().is_empty());
    let message = store.find("tiny").unwrap_err().to_string();
    assert!(message.contains(&models.display().to_string()) && message.contains("absent"), "{message}");
    assert!(message.contains("sdl model import"), "{message}");

    let entry = store.import(&path).unwrap();
    let id = entry.id.to_string();
    assert_eq!(entry.path, models.join(format!("tiny@1.0.{id}.sdlm")));
    assert_eq!(store.import(&path).unwrap(), entry, "a second time changes nothing");
    assert_eq!(store.list(), std::slice::from_ref(&entry));
    for wanted in ["tiny", "tiny@1.0", &id, &id[..16], &id[..8].to_uppercase()] {
        assert_eq!(store.find(wanted).unwrap().id(), entry.id, "{wanted}");
    }
    assert_eq!(store.find_short(entry.id.short()).unwrap().id(), entry.id);
    assert!(matches!(store.find(&id[..7]), Err(Error::Missing { .. })));
    assert!(matches!(store.find_short([0; 8]), Err(Error::Missing { .. })));
    assert!(std::fs::read_dir(&models).unwrap().count() == 1, "nothing half-written is left");
}

#[test]
fn importing_at_the_same_time_leaves_one_whole_bundle() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    for from in [folder.path(), &path] {
        let home = TempDir::new().unwrap();
        let store = Store::at([home.path().to_owned()]);
        const CALLERS: usize = 8;
        let together = Barrier::new(CALLERS);
        std::thread::scope(|scope| {
            let import = || {
                together.wait();
                store.import(from)
            };
            let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(import)).collect();
            callers.into_iter().for_each(|caller| assert!(caller.join().unwrap().is_ok()));
        });
        assert!(store.find("tiny").is_ok());
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "nothing half-written is left");
    }
}

#[test]
fn a_damaged_copy_gives_way_to_one_of_the_other_kind() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    for (first, second) in [(folder.path(), &*path), (&*path, folder.path())] {
        let home = TempDir::new().unwrap();
        let [own, behind] = ["own", "behind"].map(|name| home.path().join(name));
        let store = Store::at([own.clone(), behind.clone()]);
        let damaged = store.import(first).unwrap();
        let file = if damaged.path.is_dir() { damaged.path.join("tables.bin") } else { damaged.path.clone() };
        std::fs::write(file, "damaged").unwrap();
        let copy = store.import(second).unwrap();
        assert!(copy.path != damaged.path && !damaged.path.exists(), "{copy:?}");
        assert_eq!(store.find("tiny").unwrap().id(), copy.id);
        // One that is damaged does not hide a whole one behind it.
        let whole = Store::at([behind.clone()]).import(second).unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        let damaged = store.import(first).unwrap();
        assert_eq!(damaged.path, whole.path, "it is there already");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join(format!("tiny@1.0.{}.sdlm", whole.id)), "damaged").unwrap();
        assert_eq!(store.find("tiny@1.0").unwrap().id(), whole.id);
        assert_eq!(store.find_short(whole.id.short()).unwrap().id(), whole.id);
    }
}

#[test]
fn a_name_that_another_bundle_has_is_refused_with_both_ids() {
    let (one, other) = (folder(str::to_owned), folder(|text| text.replace("CC0-1.0", "MIT")));
    let home = TempDir::new().unwrap();
    let store = Store::at([home.path().to_owned()]);
    let first = store.import(one.path()).unwrap();
    let message = store.import(other.path()).unwrap_err().to_string();
    let second = Bundle::open(other.path()).unwrap().id();
    assert!(message.contains(&first.id.to_string()) && message.contains(&second.to_string()), "{message}");
    let newer = folder(|text| text.replace("\"1.0\"", "\"1.1\""));
    store.import(newer.path()).unwrap();
    assert!(store.find("tiny").unwrap_err().to_string().contains("several bundles: tiny@1.0 ("));
    assert!(store.find("tiny@1.1").is_ok());
}

#[test]
fn a_bundle_in_the_store_that_went_bad_is_named_and_can_be_imported_again() {
    let folder = folder(str::to_owned);
    let (_keep, path) = packed(folder.path());
    let home = TempDir::new().unwrap();
    let store = Store::at([home.path().to_owned()]);
    let entry = store.import(&path).unwrap();
    let good = std::fs::read(&entry.path).unwrap();
    std::fs::write(&entry.path, &good[..good.len() / 2]).unwrap();
    assert!(store.find("tiny").unwrap_err().to_string().contains("is damaged"));
    store.import(&path).unwrap();
    assert!(store.find("tiny").is_ok());
    // A whole bundle under the name of another.
    let other = self::folder(|text| text.replace("CC0-1.0", "MIT"));
    let (_keep, other) = packed(other.path());
    std::fs::copy(other, &entry.path).unwrap();
    assert!(store.find("tiny").unwrap_err().to_string().contains("and its name says"));
    // And one that was put there by hand.
    std::fs::remove_file(&entry.path).unwrap();
    std::fs::copy(&path, home.path().join("by-hand.sdlm")).unwrap();
    std::fs::write(home.path().join("junk.sdlm"), "junk").unwrap();
    assert_eq!(store.find("tiny").unwrap().id(), entry.id);
    assert_eq!(store.broken().len(), 1);
}
