//! The page of `sdl bench` and `sdl compare` in a real browser.
#![allow(clippy::unwrap_used)]

mod browser;

use std::path::Path;
use std::process::{Command, Stdio};

use browser::Browser;
use image::{Rgb, RgbImage};
use serde_json::json;

/// Runs the program in a folder; the engine in Rust needs nothing from the machine.
fn sdl(folder: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_sdl"))
        .args(arguments)
        .current_dir(folder)
        .env("SDL_BACKEND", "rust")
        .env("SDL_MODEL_DIR", folder.join("models"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waves and edges; more `detail` is harder to code.
fn picture(detail: u32) -> RgbImage {
    RgbImage::from_fn(256, 192, |x, y| {
        let wave = (f64::from(x * detail) / 40.0).sin() * (f64::from(y * detail) / 30.0).cos();
        let edge = if (x / 32 + y / 32) % 2 == 0 { 40 } else { 0 };
        let grey = (110.0 + 70.0 * wave) as u8;
        Rgb([grey.saturating_add(edge), grey, 255 - grey.saturating_sub(edge)])
    })
}

const SHOWN: &str =
    "[...document.querySelectorAll('.pane:not([hidden]) .tag')].map((t) => t.textContent).join(' | ')";
const POSITION: &str = "document.querySelector('.pane:not([hidden]) .world').style.transform";

/// Panes are drawn when their pictures are decoded.
fn wait_for(browser: &mut Browser, shown: &str) {
    browser.wait(&format!("({SHOWN}).startsWith({shown:?})"));
}

#[test]
fn the_page_of_a_bench_works_in_a_browser() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    std::fs::create_dir(place.join("in")).unwrap();
    picture(2).save(place.join("in/easy.png")).unwrap();
    picture(9).save(place.join("in/hard.png")).unwrap();
    let bench =
        ["bench", "in", "-o", "out", "--codecs", "sdl,jpeg,webp", "--points", "3", "--match", "0.4,0.8"];
    sdl(place, &[&bench[..], &["--range", "0.02:3", "--quiet"]].concat());
    let others =
        ["cjpeg", "cwebp"].iter().all(|program| Command::new(program).arg("-version").output().is_ok());
    assert!(others || std::env::var_os("SDL_REQUIRE_CODECS").is_none(), "cjpeg and cwebp are required");

    browser.size(1280, 900, false);
    browser.scheme("light");
    browser.open(&place.join("out/bench.html"));
    wait_for(&mut browser, "SDL q");

    // The order is that of the lead over the others; the first is shown.
    let leads = "[...document.querySelectorAll('#strip button')].map((b) => parseFloat(b.textContent.split(' ').pop()))";
    let leads: Vec<f64> = serde_json::from_value(browser.value(leads)).unwrap();
    assert_eq!(leads.len(), 2);
    assert!(leads[0] <= leads[1], "worst first: {leads:?}");
    assert_eq!(
        browser.value("document.querySelector('#strip button').getAttribute('aria-pressed')"),
        json!("true")
    );

    // Flip by key: to the original and back, and to the other codecs.
    browser.key(" ");
    wait_for(&mut browser, "Original");
    browser.key(" ");
    wait_for(&mut browser, "SDL q");
    if others {
        browser.key("2");
        wait_for(&mut browser, "libjpeg-turbo q");
        browser.key("3");
        wait_for(&mut browser, "WebP q");
    }
    browser.key("0");
    wait_for(&mut browser, "Original");
    browser.key("1");
    wait_for(&mut browser, "SDL q");

    // What is shown are pixels: the original's are those of the file.
    browser.key("0");
    wait_for(&mut browser, "Original");
    let first = browser.text("document.querySelector('#strip button').textContent.split(' ')[0]");
    let file = image::open(place.join("in").join(&first)).unwrap().to_rgb8();
    let pixel = "(() => { const c = document.createElement('canvas'); const x = c.getContext('2d'); \
                 x.drawImage(document.querySelector('#b img'), -100, -50); return [...x.getImageData(0, 0, 1, 1).data]; })()";
    let Rgb([r, g, b]) = *file.get_pixel(100, 50);
    assert_eq!(browser.value(pixel), json!([r, g, b, 255]));
    browser.key("1");
    wait_for(&mut browser, "SDL q");

    // Zoom by wheel keeps what is under the pointer; a drag moves the picture as far as the mouse.
    let at = browser.middle("#stage");
    let numbers = "(() => { const m = new DOMMatrix(getComputedStyle(document.querySelector('#b .world')).transform); \
                   const s = document.querySelector('#stage').getBoundingClientRect(); return [m.a, m.e, m.f, s.x, s.y]; })()";
    let under = |v: &[f64]| ((at.0 - v[3] - v[1]) / v[0], (at.1 - v[4] - v[2]) / v[0]);
    let before: Vec<f64> = serde_json::from_value(browser.value(numbers)).unwrap();
    browser.wheel(at, -300.0);
    browser.wait(&format!("({numbers})[0] > {}", before[0] * 1.5));
    let after: Vec<f64> = serde_json::from_value(browser.value(numbers)).unwrap();
    let (was, is) = (under(&before), under(&after));
    assert!((was.0 - is.0).abs() < 0.5 && (was.1 - is.1).abs() < 0.5, "{was:?} and {is:?}");
    browser.drag(at, (at.0 + 60.0, at.1 - 30.0));
    let moved: Vec<f64> = serde_json::from_value(browser.value(numbers)).unwrap();
    assert!(
        (moved[1] - after[1] - 60.0).abs() < 1.0 && (moved[2] - after[2] + 30.0).abs() < 1.0,
        "{moved:?}"
    );
    browser.key("f");
    let fitted: Vec<f64> = serde_json::from_value(browser.value(numbers)).unwrap();
    assert_eq!(fitted[0], before[0]);

    // Side by side, zoom and place are the same in both.
    browser.click("[data-mode-button=side]");
    browser.key("+");
    let both = "[...document.querySelectorAll('.world')].map((w) => w.style.transform)";
    let both = browser.value(both);
    assert_eq!(both[0], both[1]);
    assert_eq!(browser.number("document.querySelectorAll('.pane:not([hidden])').length"), 2.0);

    // The slider follows the mouse, and the keys when it has the focus.
    browser.click("[data-mode-button=slider]");
    let (x, y) = browser.middle("#handle");
    let now = "Number(document.querySelector('#handle').getAttribute('aria-valuenow'))";
    assert_eq!(browser.number(now), 50.0);
    let (position, width) =
        (browser.text(POSITION), browser.number("document.querySelector('#stage').clientWidth"));
    browser.drag((x, y), (x - width / 4.0, y));
    assert_eq!(browser.number(now), 25.0);
    assert_eq!(browser.text(POSITION), position, "the slider does not move the picture");
    browser.value("document.querySelector('#handle').focus()");
    browser.key("ArrowRight");
    assert_eq!(browser.number(now), 27.0);
    let clip = browser.text("getComputedStyle(document.querySelector('#b')).clipPath");
    assert!(clip.contains("27%"), "{clip}");

    // The error of the original against itself is black; that of a coded picture is not.
    browser.key("h");
    browser.wait("document.querySelectorAll('.world canvas').length === 2");
    let brightest = |side: &str| {
        format!(
            "(() => {{ const c = document.querySelector('#{side} canvas'); const d = c.getContext('2d')\
             .getImageData(0, 0, c.width, c.height).data; return d.reduce((m, v, i) => i % 4 === 3 ? m : Math.max(m, v), 0); }})()"
        )
    };
    assert_eq!(browser.number(&brightest("a")), 0.0);
    assert!(browser.number(&brightest("b")) > 10.0);
    browser.key("h");
    browser.wait("document.querySelectorAll('.world img').length === 2");

    // A point of the plot opens its picture, by mouse and by key.
    browser.click("[data-mode-button=flip]");
    browser.key("0");
    wait_for(&mut browser, "Original");
    let points = "[...document.querySelectorAll('#plot .point')]";
    let label = browser.text(&format!("{points}[2].ariaLabel.split(':')[0]"));
    browser.value(&format!("{points}[2].id = 'wanted'"));
    browser.click("#wanted");
    wait_for(&mut browser, &label);
    let label = browser.text(&format!("{points}[0].ariaLabel.split(':')[0]"));
    browser.value(&format!("{points}[0].focus()"));
    browser.key("Enter");
    wait_for(&mut browser, &label);
    browser
        .value("(() => { const s = document.querySelector('#scope'); s.value = 'mean'; s.onchange(); })()");
    assert!(browser.number(&format!("{points}.length")) >= 3.0);

    // Other pictures, other bytes.
    browser.key("n");
    wait_for(&mut browser, "SDL q");
    let second = browser.text("document.querySelectorAll('#strip button')[1].textContent.split(' ')[0]");
    assert_ne!(first, second);
    browser.wait(&format!("document.querySelector('#status').textContent.startsWith({second:?})"));
    let bytes =
        "parseFloat(document.querySelector('#b .tag').textContent.split('\\u00b7')[1].replace(',', ''))";
    browser.key("[");
    browser.key("[");
    browser.wait("document.querySelector('#rate').selectedIndex === 0");
    let few = browser.number(bytes);
    browser.key("]");
    browser.wait(&format!("{bytes} > {few}"));

    // Dark is dark, and a phone needs no scrolling sideways.
    let ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]";
    assert!(browser.number(ground) > 200.0);
    browser.scheme("dark");
    assert!(browser.number(ground) < 60.0);
    let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.number(wide), 0.0);
    browser.size(375, 740, true);
    browser.wait("innerWidth === 375");
    assert_eq!(browser.number(wide), 0.0);
    if let Some(shots) = std::env::var_os("SDL_SCREENSHOTS") {
        browser.screenshot(&Path::new(&shots).join("test-phone-dark.png"));
        browser.size(1280, 900, false);
        browser.scheme("light");
        browser.screenshot(&Path::new(&shots).join("test-light.png"));
    }

    // Nothing but the page itself was asked for, and nothing went wrong.
    browser.requests.retain(|request| !request.starts_with("blob:") && !request.starts_with("data:"));
    assert_eq!(browser.requests.len(), 1, "{:?}", browser.requests);
    assert!(browser.requests[0].ends_with("out/bench.html"));
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[test]
fn the_page_of_a_comparison_shows_its_files() {
    let Some(mut browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    picture(3).save(place.join("in.png")).unwrap();
    picture(3).save(place.join("in.jpg")).unwrap();
    sdl(place, &["encode", "in.png", "-q", "30", "--quiet"]);
    sdl(place, &["compare", "in.png", "in.sdl", "in.jpg", "--quiet"]);
    browser.size(1000, 800, false);
    browser.open(&place.join("in.compare.html"));
    wait_for(&mut browser, "in.sdl");
    browser.key("2");
    wait_for(&mut browser, "in.jpg");
    let bytes = std::fs::metadata(place.join("in.jpg")).unwrap().len();
    assert!(browser.text(SHOWN).replace(',', "").contains(&format!("{bytes} bytes")));
    assert_eq!(browser.number("document.querySelectorAll('#plot .point').length"), 2.0);
    assert_eq!(browser.value("document.querySelector('#pictures').hidden"), json!(true));
    browser.requests.retain(|request| request.starts_with("http"));
    assert_eq!(browser.requests, Vec::<String>::new());
    assert_eq!(browser.errors, Vec::<String>::new());
}
