//! How ONNX Runtime is looked for. A process loads it once, so each of these is a process of its own: this test, called
//! again.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use sdl_onnx::{Backend, RunOptions};
use tempfile::TempDir;

const CHILD: &str = "SDL_TEST_CHILD";

/// What the other tests run as a process: prints what became of the library and of the automatic choice.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let show =
        |result: Result<String, sdl_onnx::Error>| result.unwrap_or_else(|error| format!("error: {error}"));
    println!("ort = {}", show(sdl_onnx::engine(Backend::OnnxRuntime).map(|engine| engine.version())));
    println!("auto = {}", show(sdl_onnx::auto_backend().map(|backend| backend.to_string())));
    let cuda = RunOptions { provider: Some("cuda".to_owned()), ..RunOptions::default() };
    println!("cuda = {}", show(sdl_onnx::engine_for(&cuda).map(|engine| engine.name().to_owned())));
    println!("report = {}", sdl_onnx::report());
    println!("end");
}

/// Runs `child` in an environment with a bare home and these variables.
fn ask(home: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, "1").env("HOME", home).current_dir(home);
    for gone in
        ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_ROOT", "SDL_BACKEND", "LD_LIBRARY_PATH"]
    {
        command.env_remove(gone);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("\nend\n"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn without_a_library_the_rust_engine_is_chosen_and_the_error_says_where_was_looked() {
    let home = TempDir::new().unwrap();
    let text = ask(home.path(), &[]);
    if text.contains("auto = ort") {
        eprintln!("\n=== SKIPPED: an ONNX Runtime is installed system-wide ===\n");
        return;
    }
    assert!(text.contains("ort = error: no ONNX Runtime 1.24 or newer was found"), "{text}");
    assert!(text.contains("beside the program: ") && text.contains("system loader: "), "{text}");
    assert!(text.contains("pip install onnxruntime"), "{text}");
    assert!(text.contains("auto = rust"), "{text}");
    // A provider needs ONNX Runtime: no quiet run on the processor.
    assert!(text.contains("cuda = error: execution provider `cuda`: no ONNX Runtime"), "{text}");
}

#[test]
fn a_library_path_that_is_wrong_is_an_error_and_not_passed_over() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("libonnxruntime.so");
    std::fs::write(&file, "this is no library").unwrap();
    for path in ["/nowhere/libonnxruntime.so", file.to_str().unwrap()] {
        let text = ask(home.path(), &[("ORT_DYLIB_PATH", path)]);
        assert!(
            text.contains("ort = error: the ONNX Runtime that ORT_DYLIB_PATH names cannot be used"),
            "{text}"
        );
        assert!(text.contains(path), "{text}");
        assert!(text.contains("auto = error: "), "{text}");
    }
    let text = ask(home.path(), &[("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")]);
    assert!(!cfg!(target_os = "linux") || text.contains("No such file"), "the words of the system: {text}");
    // Who asks for the engine in Rust gets it.
    let text = ask(home.path(), &[("ORT_DYLIB_PATH", "/nowhere"), ("SDL_BACKEND", "rust")]);
    assert!(text.contains("auto = rust"), "{text}");
    let text = ask(home.path(), &[("SDL_BACKEND", "gpu")]);
    assert!(text.contains("auto = error: `gpu` (environment variable SDL_BACKEND) is no backend"), "{text}");
}

/// A library that is ONNX Runtime as far as its version, or not at all.
fn fake(folder: &Path, name: &str, source: &str) -> Option<String> {
    let code = folder.join(format!("{name}.rs"));
    std::fs::write(&code, source).unwrap();
    let library =
        folder.join(format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let made = Command::new(rustc).args(["--crate-type", "cdylib", "-o"]).arg(&library).arg(&code).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("\n=== SKIPPED: no rustc to make a library with ===\n");
        return None;
    }
    Some(library.to_str().unwrap().to_owned())
}

#[test]
fn a_library_that_is_too_old_or_another_one_is_told_so() {
    let home = TempDir::new().unwrap();
    let old = r#"
        #[repr(C)] pub struct Base { api: extern "C" fn(u32) -> usize, version: extern "C" fn() -> *const u8 }
        extern "C" fn api(_: u32) -> usize { 0 }
        extern "C" fn version() -> *const u8 { c"1.20.2".as_ptr().cast() }
        static BASE: Base = Base { api, version };
        #[unsafe(no_mangle)] pub extern "C" fn OrtGetApiBase() -> *const Base { &BASE }
    "#;
    if let Some(path) = fake(home.path(), "old", old) {
        let text = ask(home.path(), &[("ORT_DYLIB_PATH", &path)]);
        assert!(text.contains("version 1.20.2, 1.24 or newer is needed"), "{text}");
    }
    if let Some(path) = fake(home.path(), "other", "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}") {
        let text = ask(home.path(), &[("ORT_DYLIB_PATH", &path)]);
        assert!(text.contains("a library, but not ONNX Runtime"), "{text}");
    }
}

#[test]
fn the_wheel_of_a_virtual_environment_is_found_and_an_old_one_before_it_passed_over() {
    // Only where this process finds a library itself: it is linked into two made-up virtual environments.
    let report = sdl_onnx::report();
    let Some(used) = report.used().filter(|place| cfg!(unix) && place.path.is_file()) else {
        eprintln!("\n=== SKIPPED: no ONNX Runtime file to make a wheel of ===\n{report}\n");
        return;
    };
    let home = TempDir::new().unwrap();
    let environment = home.path().join("venv");
    let capi =
        environment.join("lib").join("python3.12").join("site-packages").join("onnxruntime").join("capi");
    std::fs::create_dir_all(&capi).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(used.path.canonicalize().unwrap(), capi.join("libonnxruntime.so.1.99.0"))
        .unwrap();
    std::fs::write(capi.join("libonnxruntime.so.1.100.0"), "newer by its name, and damaged").unwrap();
    let text = ask(home.path(), &[("VIRTUAL_ENV", environment.to_str().unwrap())]);
    if text.contains("beside the program: in use") || text.contains("system loader: in use") {
        return;
    }
    assert!(text.contains("auto = ort"), "{text}");
    assert!(text.contains("libonnxruntime.so.1.99.0: in use"), "{text}");
    assert!(text.contains(&format!("in use, version {}", report.version().unwrap_or_default())), "{text}");
}
