//! Execution providers of ONNX Runtime, by name. One that cannot be had is an error, never a run on the processor.

use ort::ep::{ExecutionProvider, ExecutionProviderDispatch};

use crate::error::listed;
use crate::{Error, RunOptions};

/// The names, and whether this build has them.
pub(super) const KNOWN: &[(&str, bool)] = &[
    ("cpu", true),
    ("cuda", cfg!(feature = "cuda")),
    ("tensorrt", cfg!(feature = "tensorrt")),
    ("coreml", cfg!(feature = "coreml")),
    ("directml", cfg!(feature = "directml")),
    ("openvino", cfg!(feature = "openvino")),
    ("xnnpack", cfg!(feature = "xnnpack")),
    ("webgpu", cfg!(feature = "webgpu")),
];

/// The provider, if the library in use was built with it.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
fn available<P>(name: &str, provider: P) -> Result<ExecutionProviderDispatch, Error>
where
    P: ExecutionProvider + Into<ExecutionProviderDispatch>,
{
    let problem = match P::is_available() {
        Ok(true) => return Ok(provider.into().error_on_failure()),
        Ok(false) => format!(
            "the ONNX Runtime in use was built without it; install one with it (for instance the wheel onnxruntime-gpu) \
             and set ORT_DYLIB_PATH to its file.\n{}",
            super::library::survey()
        ),
        Err(error) => error.message().to_owned(),
    };
    Err(Error::Provider { provider: name.to_owned(), problem })
}

/// What to register in front of the processor, for the provider that `options` name.
pub(super) fn dispatch(options: &RunOptions) -> Result<Option<ExecutionProviderDispatch>, Error> {
    let Some(given) = options.accelerator() else { return Ok(None) };
    let name = given.to_ascii_lowercase();
    let Some((_, compiled)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let known = listed(KNOWN.iter().map(|(name, _)| name));
        return Err(Error::Provider {
            provider: given.to_owned(),
            problem: format!("no provider has this name; known are {known}"),
        });
    };
    if !compiled {
        let problem = format!("this build was made without it; build sdl-onnx with its feature `{name}`");
        return Err(Error::Provider { provider: name, problem });
    }
    make(&name, options)
}

#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn make(name: &str, options: &RunOptions) -> Result<Option<ExecutionProviderDispatch>, Error> {
    let device = i32::try_from(options.device).map_err(|_| Error::Provider {
        provider: name.to_owned(),
        problem: format!("there is no device {}", options.device),
    })?;
    match name {
        // TF32 rounds the operands of float convolutions to 11 bits: not what any decoder here is meant to compute.
        #[cfg(feature = "cuda")]
        "cuda" => available(name, ort::ep::CUDA::default().with_device_id(device).with_tf32(false)).map(Some),
        #[cfg(feature = "tensorrt")]
        "tensorrt" => available(name, ort::ep::TensorRT::default().with_device_id(device)).map(Some),
        #[cfg(feature = "coreml")]
        "coreml" => available(name, ort::ep::CoreML::default()).map(Some),
        #[cfg(feature = "directml")]
        "directml" => available(name, ort::ep::DirectML::default().with_device_id(device)).map(Some),
        #[cfg(feature = "openvino")]
        "openvino" => available(name, ort::ep::OpenVINO::default()).map(Some),
        #[cfg(feature = "xnnpack")]
        "xnnpack" => {
            let threads =
                std::num::NonZeroUsize::new(options.thread_count()).unwrap_or(std::num::NonZeroUsize::MIN);
            available(name, ort::ep::XNNPACK::default().with_intra_op_num_threads(threads)).map(Some)
        }
        #[cfg(feature = "webgpu")]
        "webgpu" => available(name, ort::ep::WebGPU::default().with_device_id(device)).map(Some),
        _ => Ok(None),
    }
}
