//! Many files: structure, collisions, failures beside successes, interruption.

use crate::common::{Place, objects, words};

#[test]
fn a_folder_keeps_its_structure() {
    let place = Place::new();
    place.picture("in/a.png", 20, 20);
    place.picture("in/deep/er/b.jpg", 20, 20);
    place.write("in/notes.txt", b"no picture");
    place.write("in/.hidden.png", b"no picture either");
    place.ok(&["encode", "in", "-o", "out"]);
    place.ok(&["decode", "out", "-o", "back", "--output-format", "webp", "-j", "2"]);
    let names: Vec<String> = place.files().into_iter().filter(|name| !name.starts_with("in/")).collect();
    assert_eq!(names, ["back/a.webp", "back/deep/er/b.webp", "out/a.sdl", "out/deep/er/b.sdl"]);
    place.ok(&["encode", "in"]);
    assert!(place.path("in/deep/er/b.sdl").is_file());
}

#[test]
fn several_inputs_that_become_one_output_are_refused_before_anything_is_written() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.picture("a.bmp", 20, 20);
    place.picture("one/x.png", 20, 20);
    place.picture("two/x.png", 20, 20);
    let before = place.files();
    for arguments in [
        &["encode", "a.png", "a.bmp"][..],
        &["encode", "one", "two", "-o", "out"],
        &["encode", "a.png", "./a.png"],
    ] {
        let output = place.expect(2, arguments);
        assert!(words(&output).contains("both become"), "{}", words(&output));
    }
    assert_eq!(place.files(), before);
    place.ok(&["encode", "a.png", "a.bmp", "--keep-extension"]);
    assert!(place.path("a.png.sdl").is_file() && place.path("a.bmp.sdl").is_file());
}

#[test]
fn an_output_is_never_an_input() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.ok(&["encode", "a.png"]);
    let before = place.read("a.sdl");
    place.expect(2, &["encode", "a.sdl"]);
    place.expect(2, &["encode", "a.sdl", "./a.sdl"]);
    place.expect(2, &["decode", "a.sdl", "-o", "a.sdl", "--output-format", "png"]);
    place.expect(2, &["encode", "a.png", "-o", "a.png"]);
    assert_eq!(place.read("a.sdl"), before);
}

#[test]
fn one_output_for_several_inputs_is_refused() {
    let place = Place::new();
    place.picture("in/a.png", 20, 20);
    place.picture("in/b.png", 20, 20);
    place.expect(2, &["encode", "in", "out.sdl"]);
    place.expect(2, &["encode", "in", "-o", "-"]);
    place.expect(2, &["encode", "in/a.png", "in/b.png", "-o", "out.sdl"]);
    place.expect(2, &["encode", "-", "-", "-"]);
    assert_eq!(place.files(), ["in/a.png", "in/b.png"]);
}

#[test]
fn a_failing_file_does_not_stop_the_others_and_gives_the_exit_code() {
    let place = Place::new();
    place.picture("in/a.png", 20, 20);
    place.write("in/b.png", b"this is no picture");
    place.picture("in/c.png", 20, 20);
    let output = place.expect(3, &["encode", "in", "missing.png", "-o", "out", "--json"]);
    assert!(place.path("out/a.sdl").is_file() && place.path("out/c.sdl").is_file());
    let report = words(&output);
    assert!(report.contains("2 of 4 files failed") && report.contains("missing.png"), "{report}");
    // In the order of the inputs, whatever finished first.
    let objects = objects(&output);
    let codes: Vec<Option<u64>> = objects.iter().map(|object| object["exit_code"].as_u64()).collect();
    assert_eq!(codes, [None, Some(3), None, Some(5)]);
    place.expect(5, &["encode", "missing.png", "in", "-o", "out"]);
}

#[test]
fn what_exists_stays_with_no_overwrite() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.write("a.sdl", b"precious");
    let output = place.expect(5, &["encode", "a.png", "--no-overwrite"]);
    assert!(words(&output).contains("a.sdl exists"), "{}", words(&output));
    assert_eq!(place.read("a.sdl"), b"precious");
    place.ok(&["encode", "a.png"]);
    place.expect(5, &["decode", "a.sdl", "--no-overwrite"]);
}

#[cfg(unix)]
#[test]
fn what_is_written_over_keeps_its_permissions_and_a_link_stays_one() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let place = Place::new();
    place.picture("a.png", 20, 20);
    place.write("a.sdl", b"secret");
    std::fs::set_permissions(place.path("a.sdl"), PermissionsExt::from_mode(0o600)).unwrap();
    place.ok(&["encode", "a.png"]);
    assert_eq!(place.path("a.sdl").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // One that leads to nothing yet.
    std::fs::create_dir(place.path("folder")).unwrap();
    symlink("folder/there.sdl", place.path("link.sdl")).unwrap();
    place.ok(&["encode", "a.png", "link.sdl"]);
    assert!(place.path("link.sdl").symlink_metadata().unwrap().is_symlink());
    assert_eq!(place.read("folder/there.sdl"), place.read("a.sdl"));
}

#[test]
fn a_name_as_long_as_names_can_be_is_written() {
    let place = Place::new();
    place.picture("a.png", 20, 20);
    let name = format!("{}.sdl", "n".repeat(251));
    place.ok(&["encode", "a.png", &name]);
    assert!(place.path(&name).is_file());
}

#[cfg(unix)]
#[test]
fn a_stopped_run_leaves_whole_files_alone() {
    use std::process::{Command, Stdio};
    let place = Place::new();
    for index in 0..40 {
        place.picture(&format!("in/{index:02}.png"), 160, 160);
    }
    for signal in ["-TERM", "-INT"] {
        let mut child = place
            .command(&["encode", "in", "-o", "out", "-e", "9", "-j", "2"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // As soon as there is an output, most of the others are still to come.
        while std::fs::read_dir(place.path("out")).map_or(0, Iterator::count) < 2 {
            assert!(child.try_wait().unwrap().is_none(), "it ended too early");
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", words(&output));
        assert!(words(&output).contains("of 40 files are done"), "{}", words(&output));
        let made: Vec<String> = place.files().into_iter().filter(|name| name.starts_with("out/")).collect();
        assert!(!made.is_empty() && made.len() < 40);
        assert!(made.iter().all(|name| name.ends_with(".sdl") && !name.contains("/.")), "{made:?}");
        place.ok(&["verify", "out"]);
        std::fs::remove_dir_all(place.path("out")).unwrap();
    }
}
