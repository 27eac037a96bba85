//! Models without tables: latent methods, denoising, and what is said when a model is missing.

use crate::common::{Place, objects, words};

/// A model without tables, in the folder of the tests across rooms.
fn blocks() -> String {
    format!("{}/../../tests/bundles/blocks", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_method_is_encoded_named_and_decoded() {
    let place = Place::new();
    place.picture("a.png", 70, 50);
    let model = blocks();
    place.ok(&["model", "import", &model]);
    for (options, method, json) in [
        (&[][..], "scalar, universal coder", "scalar"),
        (&["--method", "scalar", "-q", "30"], "scalar, universal coder", "scalar"),
        (&["--method", "palette"], "palette", "palette"),
        (&["--method", "palette", "--dither", "--target-size", "400"], "palette", "palette"),
        (&["--preset", "sd-2022"], "palette", "palette"),
    ] {
        let arguments = [&["encode", "a.png", "a.sdl", "--model", "blocks", "--json"], options].concat();
        let said = objects(&place.ok(&arguments)).remove(0);
        assert!(said["latent_error"].as_f64().is_some() && said["denoise"].is_null(), "{said}");
        let info = String::from_utf8(place.ok(&["info", "a.sdl"]).stdout).unwrap();
        assert!(info.contains(&format!("latent:   {method}, 1 tile")), "{info}");
        assert_eq!(objects(&place.ok(&["info", "--json", "a.sdl"]))[0]["method"], json);
        place.ok(&["verify", "a.sdl"]);
        place.ok(&["decode", "a.sdl", "b.png", "--denoise-steps", "2", "--decoder", "fidelity"]);
        assert_eq!(place.open("b.png").width(), 70);
    }
}

#[test]
fn options_that_do_not_go_together_are_2_and_what_a_model_cannot_do_is_said() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    for options in [
        &["--dither"][..],
        &["--method", "scalar", "--dither"],
        &["--method", "wavelet"],
        &["--preset", "sd-2022", "-q", "3"],
        &["--denoise", "1.5:2"],
        &["--denoise", "0.5:0"],
        &["--denoise", "much"],
        &["--decoder", "beautiful"],
    ] {
        place.expect(2, &[&["encode", "a.png", "--model", &blocks()], options].concat());
    }
    let output = place.expect(1, &["encode", "a.png", "--method", "palette"]);
    assert!(words(&output).contains("its own tables"), "{}", words(&output));
    let model = blocks();
    for (options, name) in
        [(["--denoise", "0.1:2"], "denoiser"), (["--decoder", "natural"], "synthesis.natural")]
    {
        let output = place.expect(4, &[&["encode", "a.png", "--model", &model], &options[..]].concat());
        assert!(words(&output).contains(name), "{}", words(&output));
    }
    let output = place.expect(4, &["encode", "a.png", "--model", &model, "--provider", "cuda"]);
    assert!(words(&output).contains("`cuda`"), "{}", words(&output));
    assert_eq!(place.files(), ["a.png"]);
}

#[test]
fn a_missing_model_is_4_with_its_name_its_id_where_it_was_looked_for_and_what_to_do() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.ok(&["encode", "a.png", "--model", &blocks()]);
    let shown = objects(&place.ok(&["model", "show", "--json", &blocks()])).remove(0);
    let id = shown["short_id"].as_str().unwrap();
    for arguments in [&["decode", "a.sdl", "b.png"][..], &["verify", "a.sdl"], &["encode", "a.sdl", "c.sdl"]]
    {
        let output = place.expect(4, arguments);
        let words = words(&output);
        let store = place.path("models").display().to_string();
        for part in [&format!("blocks@1 (id {id})"), &store, "sdl model import"] {
            assert!(words.contains(part), "{words}");
        }
    }
    let info = String::from_utf8(place.ok(&["info", "a.sdl"]).stdout).unwrap();
    assert!(info.contains(&format!("{id} (blocks@1), not here")), "{info}");
    place.ok(&["decode", "a.sdl", "b.png", "--model", &blocks()]);
}

#[test]
fn the_file_says_which_decoder_its_author_meant_and_the_reader_may_choose_the_other() {
    let place = Place::new();
    place.picture("a.png", 70, 50);
    let pixels = |name: &str| image::open(place.path(name)).unwrap().into_rgb8();
    for (decoder, other) in [("fidelity", "natural"), ("natural", "fidelity")] {
        let file = format!("{decoder}.sdl");
        place.ok(&["encode", "a.png", "-o", &file, "-q", "30", "--decoder", decoder]);
        place.ok(&["decode", &file, "-o", &format!("{decoder}.png")]);
        place.ok(&["decode", &file, "-o", &format!("not-{decoder}.png"), "--decoder", other]);
        assert_eq!(objects(&place.ok(&["info", "--json", &file]))[0]["natural"], decoder == "natural");
        let info = String::from_utf8(place.ok(&["info", &file]).stdout).unwrap();
        assert_eq!(info.contains("decoder:  natural"), decoder == "natural", "{info}");
    }
    assert!(pixels("fidelity.png") == pixels("not-natural.png"));
    assert!(pixels("natural.png") == pixels("not-fidelity.png"));
    assert!(pixels("natural.png") != pixels("fidelity.png"));
}
