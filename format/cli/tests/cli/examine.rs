//! What the program says about files, models and the machine.

use crate::common::{Place, objects, words};

#[test]
fn info_begins_with_the_line_that_people_look_for() {
    let place = Place::new();
    place.picture("a.png", 76, 51);
    place.ok(&["encode", "a.png", "-q", "30"]);
    let output = place.ok(&["info", "a.sdl"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().next(), Some("SDL image, 76x51, lossy (neural), 8-bit RGB"));
    assert!(text.contains("here") && text.contains("30") && text.contains("1 tile"), "{text}");
}

#[test]
fn info_as_json_has_the_fields_that_are_promised() {
    let place = Place::new();
    place.picture("a.png", 76, 51);
    place.ok(&["encode", "a.png", "-q", "30"]);
    place.write("broken.sdl", b"nothing");
    let output = place.expect(3, &["info", "a.sdl", "broken.sdl", "--json"]);
    let objects = objects(&output);
    let good = objects[0].as_object().unwrap();
    for field in [
        "schema",
        "file",
        "width",
        "height",
        "colour",
        "bits",
        "alpha_bits",
        "lossless",
        "quality",
        "bytes",
        "bpp",
        "method",
        "tiles",
        "duration_us",
        "natural",
        "model",
        "metadata",
        "chunks",
    ] {
        assert!(good.contains_key(field), "{field}");
    }
    assert_eq!(good["schema"], 1);
    assert_eq!(
        (&good["width"], &good["quality"], &good["model"]["here"]),
        (&76.into(), &30.into(), &true.into())
    );
    assert_eq!(good["bytes"], place.read("a.sdl").len());
    assert_eq!(objects[1]["exit_code"], 3);
    assert_eq!(objects[1]["file"], "broken.sdl");
}

#[test]
fn info_needs_no_engine() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.ok(&["encode", "a.png"]);
    let output = place
        .command(&["info", "a.sdl"])
        .env("SDL_BACKEND", "ort")
        .env("ORT_DYLIB_PATH", place.path("nowhere.so"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn verify_sums_are_those_of_the_pixels() {
    use sha2::{Digest, Sha256};
    let place = Place::new();
    place.picture("a.png", 40, 30);
    place.ok(&["encode", "a.png"]);
    place.ok(&["decode", "a.sdl", "b.png"]);
    let pixels = place.open("b.png").to_rgb8();
    let sum: String = Sha256::digest(pixels.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect();
    let object = objects(&place.ok(&["verify", "a.sdl", "--pixels", "--json"])).remove(0);
    assert_eq!(object["pixels_sha256"], sum);
    assert!(String::from_utf8(place.ok(&["verify", "a.sdl"]).stdout).unwrap().contains("a.sdl: OK"));
}

#[test]
fn models_are_listed_shown_packed_and_imported() {
    let place = Place::new();
    let built_in = objects(&place.ok(&["model", "list", "--json"])).remove(0);
    let shown = objects(&place.ok(&["model", "show", "--json"])).remove(0);
    assert_eq!(built_in["id"], shown["id"]);
    assert!(shown["graphs"].as_array().unwrap().iter().any(|graph| graph["role"] == "synthesis"));
    place.write(
        "source/bundle.toml",
        b"format = 1\nname = \"mine\"\nlicence = \"MIT\"\n[latent]\nchannels = 4\nstride = 8\n[graphs.analysis]\n\
          file = \"a.onnx\"\n[graphs.synthesis]\nfile = \"s.onnx\"\n",
    );
    place.write("source/a.onnx", b"not looked at here");
    place.write("source/s.onnx", b"nor this");
    place.ok(&["model", "pack", "source", "mine.sdlm"]);
    place.expect(2, &["model", "pack", "source", "source/mine.sdlm"]);
    place.expect(2, &["model", "pack", "source", "source/bundle.toml"]);
    assert!(place.read("source/bundle.toml").starts_with(b"format"));
    place.ok(&["model", "import", "mine.sdlm"]);
    let listed = objects(&place.ok(&["model", "list", "--json"]));
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[1]["name"], "mine");
    let shown = objects(&place.ok(&["model", "show", "mine", "--json"])).remove(0);
    assert_eq!(shown["id"], listed[1]["id"]);
    // One that is damaged is said to be, and the others are still listed.
    place.write("models/rubbish.sdlm", b"rubbish");
    let output = place.expect(4, &["model", "list"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("BROKEN"));
    assert!(String::from_utf8_lossy(&place.ok(&["doctor"]).stdout).contains("rubbish.sdlm"));
}

#[test]
fn doctor_tests_the_engines_and_says_what_is_wrong() {
    let place = Place::new();
    let report = objects(&place.ok(&["doctor", "--json"])).remove(0);
    assert_eq!(report["healthy"], true);
    assert_eq!(report["backend"], "rust");
    let tests = report["tests"].as_array().unwrap();
    assert!(tests.iter().any(|test| test["backend"] == "rust" && test["ok"] == true));
    assert_ne!(report["same_pixels"], false);
    let output = place
        .command(&["doctor"])
        .env("SDL_BACKEND", "ort")
        .env("ORT_DYLIB_PATH", place.path("nowhere.so"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("nowhere.so") && text.contains("ORT_DYLIB_PATH"), "{text}");
}

#[test]
fn a_delta_picture_says_what_it_needs_and_does_not_decode_alone() {
    let place = Place::new();
    let model = image_sdl::Model::built_in().unwrap();
    let mut encoder = image_sdl::SequenceEncoder::new(model).unwrap();
    for (name, shade) in [("key.sdl", 10), ("delta.sdl", 200)] {
        let picture =
            image_sdl::Picture::new(40, 30, image_sdl::Colour::Rgb, vec![shade; 40 * 30 * 3]).unwrap();
        let file = encoder.encode(&picture, &image_sdl::EncodeOptions::default()).unwrap();
        place.write(name, &file.bytes);
    }
    let name = image_sdl::ReferenceName::of(&place.read("key.sdl")).to_string();
    let said = String::from_utf8(place.ok(&["info", "delta.sdl"]).stdout).unwrap();
    assert!(said.contains(&format!("delta:    against picture {name}")), "{said}");
    let json: serde_json::Value =
        serde_json::from_slice(&place.ok(&["info", "--json", "delta.sdl"]).stdout).unwrap();
    assert_eq!(json["reference"], name.as_str());
    for arguments in [&["decode", "delta.sdl", "x.png"][..], &["verify", "delta.sdl"]] {
        let output = place.expect(3, arguments);
        assert!(words(&output).contains(&name), "{}", words(&output));
    }
    assert_eq!(place.files(), ["delta.sdl", "key.sdl"]);
}

#[test]
fn nothing_is_kept_or_sent_about_who_decodes() {
    let place = Place::new();
    let mut command = place.command(&["doctor"]);
    // Where ONNX Runtime keeps what it reports to its maker.
    let done = command.env_remove("SDL_BACKEND").env("HOME", place.path("home")).env_remove("XDG_CACHE_HOME");
    let done = done.output().unwrap();
    if !words(&done).contains("in use") && std::env::var_os("SDL_REQUIRE_ORT").is_none() {
        eprintln!("\n=== SKIPPED: no ONNX Runtime ===\n");
        return;
    }
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
    assert!(place.files().iter().all(|name| !name.starts_with("home")), "{:?}", place.files());
}

#[test]
fn a_page_is_never_one_of_the_files_that_it_compares() {
    let place = Place::new();
    place.picture("a.png", 40, 30);
    place.picture("b.bmp", 40, 30);
    let before = (place.read("a.png"), place.read("b.bmp"));
    for out in ["a.png", "./b.bmp"] {
        let output = place.expect(2, &["compare", "a.png", "b.bmp", "-o", out]);
        assert!(words(&output).contains("is an input"), "{}", words(&output));
    }
    assert!(before == (place.read("a.png"), place.read("b.bmp")));
}
