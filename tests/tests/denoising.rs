//! Denoising of a latent whose ideal denoiser is known in closed form, and models that see where they are cut.
//!
//! The latent is the picture: three channels, stride 1, normal with a covariance that is known. The ideal prediction of the
//! noise is then linear, E[noise | z] = sqrt(1 - abar) (abar S + (1 - abar) I)^-1 z, and so is every step of DDIM with it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use image_sdl::onnx::{Backend, Bundle, Schedule};
use image_sdl::{
    Colour, Decoder, Denoise, Denoising, EncodeOptions, Error, ErrorKind, LatentMethod, Model, Picture,
    Settings, Synthesis, encode_with,
};
use sdl_tests::{Container, Random, folder, options};
use tempfile::TempDir;

const CHANNELS: usize = 3;
const STEPS: usize = 100;
/// Black and white in units of the latent.
const REACH: f64 = 4.0;
/// The quantiser at quality 50.
const STEP: f64 = 1.0;
const SCHEDULE: Schedule = Schedule::Linear { beta_start: 0.0005, beta_end: 0.02, train_steps: STEPS };
/// Standard deviations along grey, and along the two directions across it: three channels that nearly agree.
const DEVIATIONS: [f64; CHANNELS] = [1.2, 0.15, 0.15];

type Vector = [f64; CHANNELS];
type Matrix = [Vector; CHANNELS];

const IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// Orthonormal: grey, and two across it.
fn directions() -> Matrix {
    let row = |v: Vector| v.map(|x| x / v.iter().map(|x| x * x).sum::<f64>().sqrt());
    [row([1.0, 1.0, 1.0]), row([1.0, -1.0, 0.0]), row([1.0, 1.0, -2.0])]
}

fn build(entry: impl Fn(usize, usize) -> f64) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| entry(i, j)))
}

fn covariance() -> Matrix {
    let d = directions();
    build(|i, j| (0..CHANNELS).map(|k| d[k][i] * d[k][j] * DEVIATIONS[k] * DEVIATIONS[k]).sum())
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    build(|i, j| (0..CHANNELS).map(|k| a[i][k] * b[k][j]).sum())
}

fn apply(a: &Matrix, v: Vector) -> Vector {
    std::array::from_fn(|i| (0..CHANNELS).map(|k| a[i][k] * v[k]).sum())
}

/// By cofactors.
fn inverse(m: &Matrix) -> Matrix {
    let minor = |i: usize, j: usize| {
        let (a, b, c, d) = ((i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3);
        m[a][c] * m[b][d] - m[a][d] * m[b][c]
    };
    let determinant: f64 = (0..3).map(|j| m[0][j] * minor(0, j)).sum();
    build(|i, j| minor(j, i) / determinant)
}

/// The ideal prediction of the noise at abar, as a matrix.
fn ideal(abar: f64) -> Matrix {
    let s = covariance();
    let spread = build(|i, j| abar * s[i][j] + (1.0 - abar) * IDENTITY[i][j]);
    inverse(&spread).map(|row| row.map(|v| v * (1.0 - abar).sqrt()))
}

/// What DDIM with the ideal denoiser makes of a latent, as a matrix (docs/FORMAT.md section 6.4).
fn closed_form(denoising: Denoising) -> Matrix {
    let abar = SCHEDULE.alphas_cumprod();
    let (t, n) = (usize::from(denoising.timestep), usize::from(denoising.steps));
    let at: Vec<f64> = (0..n).map(|k| abar[t * (n - k) / n]).chain([1.0]).collect();
    let mut whole = IDENTITY.map(|row| row.map(|v| v * at[0].sqrt()));
    for pair in at.windows(2) {
        let predicted = ideal(pair[0]);
        let step = build(|i, j| {
            let clean = (IDENTITY[i][j] - (1.0 - pair[0]).sqrt() * predicted[i][j]) / pair[0].sqrt();
            pair[1].sqrt() * clean + (1.0 - pair[1]).sqrt() * predicted[i][j]
        });
        whole = product(&step, &whole);
    }
    whole
}

/// Normal numbers by Box and Muller.
struct Normal(Random);

impl Normal {
    fn draw(&mut self) -> f64 {
        let mut uniform = || (f64::from(self.0.draw()) + 0.5) / 2f64.powi(31);
        (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }

    fn vector(&mut self) -> Vector {
        std::array::from_fn(|_| self.draw())
    }

    /// A latent position.
    fn latent(&mut self) -> Vector {
        let (d, free) = (directions(), self.vector());
        std::array::from_fn(|i| (0..CHANNELS).map(|k| d[k][i] * DEVIATIONS[k] * free[k]).sum())
    }
}

/// Trains: the least squares of the noise on the noisy latent, at every timestep, over samples.
fn train() -> Vec<f32> {
    const SAMPLES: usize = 3000;
    let mut normal = Normal(Random::new(1));
    let mut table = Vec::new();
    for abar in SCHEDULE.alphas_cumprod() {
        let (mut moments, mut products) = ([[0.0; CHANNELS]; CHANNELS], [[0.0; CHANNELS]; CHANNELS]);
        for _ in 0..SAMPLES {
            let (clean, noise) = (normal.latent(), normal.vector());
            let noisy: Vector =
                std::array::from_fn(|i| abar.sqrt() * clean[i] + (1.0 - abar).sqrt() * noise[i]);
            for i in 0..CHANNELS {
                for j in 0..CHANNELS {
                    moments[i][j] += noisy[i] * noisy[j];
                    products[i][j] += noise[i] * noisy[j];
                }
            }
        }
        table.extend(product(&products, &inverse(&moments)).as_flattened().iter().map(|v| *v as f32));
    }
    table
}

/// The bundle, with or without the trained denoiser; `more` goes into the manifest.
fn bundle(place: &Path, denoiser: bool, synthesis: &str, more: &str) -> Model {
    std::fs::create_dir_all(place).unwrap();
    let from = folder("bundles").join("toy");
    for name in ["identity.onnx", "centred.onnx", "denoiser.onnx"] {
        std::fs::copy(from.join(name), place.join(name)).unwrap();
    }
    let mut manifest = format!(
        "format = 1\nname = \"toy\"\nlicence = \"CC0-1.0\"\n[latent]\nchannels = {CHANNELS}\nstride = 1\nstep = {STEP:?}\n\
         [pixels]\nrange = [-{REACH:?}, {REACH:?}]\n[graphs.analysis]\nfile = \"identity.onnx\"\n\
         [graphs.synthesis]\nfile = \"{synthesis}.onnx\"\n{more}\n"
    );
    if denoiser {
        let table: Vec<u8> = train().iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(place.join("table.bin"), table).unwrap();
        manifest += &format!(
            "[graphs.denoiser]\nfile = \"denoiser.onnx\"\ninputs = [\"sample\", \"timestep\", \"table\"]\n\
             [denoiser]\nprediction = \"epsilon\"\n\
             schedule = {{ kind = \"linear\", beta_start = 0.0005, beta_end = 0.02, train_steps = {STEPS} }}\n\
             conditions = [{{ input = \"table\", file = \"table.bin\", shape = [{STEPS}, 3, 3] }}]\n"
        );
    }
    std::fs::write(place.join("bundle.toml"), manifest).unwrap();
    let settings = Settings { backend: Backend::Rust, ..Settings::default() };
    Model::with_settings(Bundle::open(place).unwrap(), settings).unwrap()
}

fn toy() -> (TempDir, Model) {
    let place = tempfile::tempdir().unwrap();
    let model = bundle(place.path(), true, "identity", "[tiling]\nsize = 128\nmargin = 4");
    (place, model)
}

fn sample(width: u32, height: u32) -> Picture {
    let mut normal = Normal(Random::new(2));
    let level = |v: f64| ((v + REACH) * 255.0 / (2.0 * REACH)).round().clamp(0.0, 255.0) as u8;
    let pixels = (0..width * height).flat_map(|_| normal.latent().map(level)).collect();
    Picture::new(width, height, Colour::Rgb, pixels).unwrap()
}

fn plain() -> EncodeOptions {
    EncodeOptions::default().with_effort(1).with_threads(1)
}

fn decode(model: &Model, bytes: &[u8], steps: Option<u8>, threads: usize) -> Picture {
    let mut options = options(Backend::Rust, threads);
    options.denoise_steps = steps;
    Decoder::new(bytes).unwrap().with_model(model.clone()).decode(&options).unwrap()
}

/// The payload of the only chunk of a kind.
fn chunk(container: &mut Container, kind: u8) -> &mut Vec<u8> {
    &mut container.chunks.iter_mut().find(|(found, _)| *found == kind).unwrap().1
}

fn said(bytes: &[u8]) -> Option<Denoising> {
    Decoder::new(bytes).unwrap().denoising().unwrap()
}

/// Mean squared error, in units of the latent.
fn error(a: &Picture, b: &Picture) -> f64 {
    let scale = 2.0 * REACH / 255.0;
    let squares = a.pixels().iter().zip(b.pixels()).map(|(a, b)| (f64::from(a.abs_diff(*b)) * scale).powi(2));
    squares.sum::<f64>() / a.pixels().len() as f64
}

#[test]
fn one_step_and_four_come_closer_to_the_clean_latent_than_none_and_are_the_closed_form() {
    let (_place, model) = toy();
    let clean = sample(64, 64);
    let one = encode_with(&model, &clean, &plain()).unwrap().bytes;
    // D^2 / 12 = (1 - abar) / abar.
    let distance = |abar: f64| ((12.0 * (1.0 - abar) / abar).sqrt() / STEP).ln().abs();
    let abar = SCHEDULE.alphas_cumprod();
    let nearest = (1..STEPS).min_by(|a, b| distance(abar[*a]).total_cmp(&distance(abar[*b]))).unwrap();
    let expected = Denoising { timestep: nearest as u16, steps: 1 };
    assert_eq!(said(&one), Some(expected));
    let strength = Denoise::Strength(nearest as f32 / STEPS as f32, 4);
    let four = encode_with(&model, &clean, &plain().with_denoise(strength)).unwrap().bytes;
    assert_eq!(said(&four), Some(Denoising { steps: 4, ..expected }));

    let quantised = decode(&model, &one, Some(0), 1);
    assert!(quantised == decode(&model, &four, Some(0), 1));
    let none = error(&quantised, &clean);
    assert!((none / (STEP * STEP / 12.0) - 1.0).abs() < 0.1, "{none}");
    for (bytes, steps) in [(&one, 1), (&four, 4)] {
        let denoised = decode(&model, bytes, None, 1);
        let found = error(&denoised, &clean);
        println!("{steps} steps: squared error {found:.4}, undenoised {none:.4}");
        assert!(found < 0.65 * none, "{steps} steps: {found} against {none}");
        let operator = closed_form(Denoising { steps, ..expected });
        let unit = 2.0 * REACH / 255.0;
        let latent = quantised.pixels().chunks_exact(3);
        let squares = latent.zip(denoised.pixels().chunks_exact(3)).map(|(from, to)| {
            let wanted = apply(&operator, std::array::from_fn(|c| f64::from(from[c]) * unit - REACH));
            (0..CHANNELS).map(|c| (f64::from(to[c]) * unit - REACH - wanted[c]).powi(2)).sum::<f64>()
        });
        let off = (squares.sum::<f64>() / clean.pixels().len() as f64).sqrt();
        println!("{steps} steps: {off:.4} from the closed form, a level is {unit:.4}");
        assert!(off < 0.8 * unit, "{steps} steps: {off} from the closed form");
    }
}

#[test]
fn a_decode_is_repeatable_and_its_steps_can_be_chosen() {
    let (_place, model) = toy();
    let picture = sample(40, 30);
    let options = plain().with_denoise(Denoise::Strength(0.3, 4));
    let bytes = encode_with(&model, &picture, &options).unwrap().bytes;
    let meant = decode(&model, &bytes, None, 1);
    assert!(meant == decode(&model, &bytes, None, 2) && meant == decode(&model, &bytes, Some(4), 1));
    let (one, none) = (decode(&model, &bytes, Some(1), 1), decode(&model, &bytes, Some(0), 1));
    assert!(meant != one && one != none);
    // More steps than timesteps are as many as there are.
    assert!(decode(&model, &bytes, Some(30), 1) == decode(&model, &bytes, Some(200), 1));

    let off = encode_with(&model, &picture, &plain().with_denoise(Denoise::Off)).unwrap().bytes;
    assert_eq!(said(&off), None);
    assert!(decode(&model, &off, None, 1) == none && decode(&model, &off, Some(3), 1) == none);
}

#[test]
fn a_search_comes_closer_at_the_same_bytes() {
    /// What a file takes to say that it is to be denoised.
    const CHUNK: usize = 9;
    let (_place, model) = toy();
    let picture = sample(64, 64);
    let distance = |bytes: &[u8]| error(&decode(&model, bytes, None, 1), &picture);
    let without = plain().with_effort(8).with_denoise(Denoise::Off);
    let stored = encode_with(&model, &picture, &without).unwrap().bytes;
    let found = encode_with(&model, &picture, &plain().with_effort(8)).unwrap();
    assert!(found.denoising.is_some() && found.bytes.len() <= stored.len() + CHUNK);
    assert!(distance(&found.bytes) < 0.98 * distance(&stored));

    let size = stored.len() as u64;
    let sized = encode_with(&model, &picture, &plain().with_effort(8).with_target_size(size)).unwrap();
    assert!(sized.bytes.len() as u64 <= size && sized.denoising.is_some());
    let unsearched = encode_with(&model, &picture, &without.with_target_size(size)).unwrap().bytes;
    assert!(distance(&sized.bytes) < distance(&unsearched));
}

#[test]
fn every_method_is_denoised_and_the_recipe_of_2022_is_what_it_says() {
    let (_place, model) = toy();
    let picture = sample(40, 30);
    let preset = EncodeOptions::default().with_preset_2022(&model);
    let file = encode_with(&model, &picture, &preset).unwrap();
    assert_eq!(file.denoising, Some(Denoising { timestep: 4, steps: 4 }));
    let header = Decoder::new(&file.bytes[..]).unwrap().header().clone();
    assert_eq!(header.method.name(), "palette");
    decode(&model, &file.bytes, None, 1);
    let auto = plain().with_method(LatentMethod::Palette { dither: false }).with_quality(60);
    let file = encode_with(&model, &picture, &auto).unwrap();
    let (denoised, stored) = (decode(&model, &file.bytes, None, 1), decode(&model, &file.bytes, Some(0), 1));
    assert!(file.denoising.is_some() && denoised != stored);
    assert!((error(&stored, &picture) / file.latent_error.unwrap() - 1.0).abs() < 0.1);
}

#[test]
fn a_bundle_without_a_denoiser_is_refused_where_one_is_asked_for_and_hostile_chunks_are() {
    let place = tempfile::tempdir().unwrap();
    let without = bundle(&place.path().join("without"), false, "identity", "");
    let picture = sample(20, 20);
    let asked = plain().with_denoise(Denoise::Strength(0.1, 2));
    let refused = encode_with(&without, &picture, &asked).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Model, "{refused}");
    assert!(refused.to_string().contains("`denoiser`"), "{refused}");
    let preset = EncodeOptions::default().with_preset_2022(&without);
    assert_eq!(encode_with(&without, &picture, &preset).unwrap().denoising, None);
    for strength in [0.0, 1.0, -1.0, f32::NAN] {
        let options = plain().with_denoise(Denoise::Strength(strength, 2));
        assert!(matches!(encode_with(&without, &picture, &options), Err(Error::Parameter(_))));
    }

    let (_place, model) = toy();
    let sound = encode_with(&model, &picture, &asked).unwrap().bytes;
    let with = |payload: &[u8]| {
        let mut container = Container::parse(&sound);
        *chunk(&mut container, b'N') = payload.to_vec();
        let bytes = container.to_bytes();
        let decoder = Decoder::new(&bytes[..])?;
        decoder.with_model(model.clone()).decode(&options(Backend::Rust, 1)).map(|_| ())
    };
    assert!(with(&[10, 0, 2]).is_ok());
    for bad in [
        &[][..],
        &[10, 0],
        &[10, 0, 0],
        &[0, 0, 1],
        &[3, 0, 4],
        &[100, 0, 1],
        &[0xff, 0xff, 9],
        &[1, 0, 1, 0],
    ] {
        let error = with(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad:?}: {error}");
    }
    // The toy's own pictures, read with a bundle that has no denoiser.
    let mut container = Container::parse(&sound);
    container.header[20..28].copy_from_slice(&without.bundle().id().short());
    let bytes = container.to_bytes();
    let error = Decoder::new(&bytes[..]).unwrap().with_model(without).decode(&options(Backend::Rust, 1));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Model);
}

#[test]
fn windows_of_a_model_that_sees_where_it_is_cut_fade_into_each_other() {
    let place = tempfile::tempdir().unwrap();
    let model = |name: &str, synthesis, size| {
        let tiling = format!("[tiling]\nsize = {size}\nmargin = 4");
        bundle(&place.path().join(name), true, synthesis, &tiling)
    };
    // Dark on the left, light on the right: the mean that the synthesis takes away is another in each window.
    let (width, height) = (100, 70);
    let ramp = |i: u32| [60 + (i % width) as u8 + (i / width / 2) as u8; 3];
    let picture =
        Picture::new(width, height, Colour::Rgb, (0..width * height).flat_map(ramp).collect()).unwrap();
    let options = plain().with_quality(90).with_denoise(Denoise::Off);
    let whole = model("whole", "identity", 100);
    let reference = decode(&whole, &encode_with(&whole, &picture, &options).unwrap().bytes, None, 1);
    let cut = model("cut", "identity", 32);
    let bytes = encode_with(&cut, &picture, &options).unwrap().bytes;
    assert_eq!(*chunk(&mut Container::parse(&bytes), b'T'), [32, 0, 8, 0]);
    // What does not see the cut comes out as it is.
    assert!(decode(&cut, &bytes, None, 1) == reference && decode(&cut, &bytes, None, 2) == reference);
    // And so does a denoiser that does not, by the same plan.
    let denoise = plain().with_quality(90).with_denoise(Denoise::Strength(0.3, 3));
    let denoised =
        |model: &Model| decode(model, &encode_with(model, &picture, &denoise).unwrap().bytes, None, 2);
    assert!(denoised(&cut).pixels().iter().zip(denoised(&whole).pixels()).all(|(a, b)| a.abs_diff(*b) <= 1));

    let centred = model("centred", "centred", 32);
    let bytes = encode_with(&centred, &picture, &options).unwrap().bytes;
    let faded = decode(&centred, &bytes, None, 2);
    let row = |y: u32| {
        faded.pixels().chunks_exact(3).skip((y * width) as usize).take(width as usize).map(|rgb| rgb[0])
    };
    // Means of neighbours differ by about 22 levels; spread over the middle of 8 positions that is some 6 a step.
    let steepest = (0..height)
        .flat_map(|y| row(y).zip(row(y).skip(1)).map(|(a, b)| a.abs_diff(b)).collect::<Vec<_>>())
        .max();
    assert!(steepest < Some(12), "{steepest:?}");
    assert!(faded == decode(&centred, &bytes, None, 1));
    let grey = sdl_tests::grey(&picture);
    let bytes =
        encode_with(&centred, &grey, &options.clone().with_synthesis(Synthesis::Fidelity)).unwrap().bytes;
    let level = decode(&centred, &bytes, None, 1);
    assert_eq!(level.pixels().len(), (width * height) as usize);

    // Windows beyond what the bundle is made for, and plans that are none.
    for plan in [[33, 0, 8, 0], [32, 0, 0, 0], [32, 0, 17, 0], [0, 0, 0, 0], [0xff, 0xff, 8, 0]] {
        let mut container = Container::parse(&bytes);
        *chunk(&mut container, b'T') = plan.to_vec();
        let bad = container.to_bytes();
        let error = Decoder::new(&bad[..])
            .and_then(|decoder| {
                decoder.with_model(centred.clone()).decode(&sdl_tests::options(Backend::Rust, 1))
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{plan:?}: {error}");
    }
}
