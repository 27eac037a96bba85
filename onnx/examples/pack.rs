//! Packs a bundle folder into a `.sdlm` file: `cargo run -p sdl-onnx --example pack -- FOLDER OUT.sdlm`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, out] = arguments.as_slice() else { return Err("usage: pack FOLDER OUT.sdlm".into()) };
    let bundle = sdl_onnx::Bundle::write_sdlm(folder, out)?;
    println!("{} {}", bundle.id(), out);
    Ok(())
}
