//! Sessions of the user's ONNX Runtime.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensor, DynTensorValueType, Shape, TensorElementType};

use super::array::{Array, element_size, elements};
use super::inputs::Slot;
use super::probe;
use crate::onnx::{Error, Result};
use crate::pipeline::optimize::Level;

/// A loaded libonnxruntime. One process loads one: that of the first call, whatever later ones name.
#[derive(Debug)]
pub struct Runtime {
    version: String,
    environment: Environment,
    threads: Option<u16>,
}

/// A model that a [`Runtime`] has loaded.
pub struct Loaded {
    path: PathBuf,
    session: Session,
}

impl Runtime {
    /// Loads libonnxruntime; sessions run on `threads` threads, or on as many as ONNX Runtime likes.
    ///
    /// # Errors
    /// It cannot be loaded or is older than 1.17.
    pub fn load(path: &Path, threads: Option<u16>) -> Result<Runtime> {
        // One process makes one environment, for all that need one.
        static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
        if let Some(environment) = ENVIRONMENT.get() {
            return Ok(Runtime { version: version(path)?, environment: environment.clone(), threads });
        }
        let builder = ort::init_from(path).map_err(|e| match e {
            ort::LoadDynamicError::BadVersion { version_str, .. } => Error::unsupported(
                path,
                format!(
                    "is ONNX Runtime {version_str}, but custom ops need 1.{} or later",
                    ort::MINOR_VERSION
                ),
            ),
            other => Error::io(path, "load ONNX Runtime", std::io::Error::other(other.to_string())),
        })?;
        let environment = builder
            .with_name("nz-onnx")
            .with_telemetry(false)
            .build()
            .map_err(|e| Error::io(path, "start ONNX Runtime", std::io::Error::other(e.to_string())))?;
        // What goes wrong comes back as an error; ONNX Runtime need not print it as well.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        let environment = ENVIRONMENT.get_or_init(|| environment).clone();
        Ok(Runtime { version: version(path)?, environment, threads })
    }

    /// Its version, as in "1.31.1".
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Writes `model` as optimised for the CPU to `out`; its weights to a file of the name `data` beside it, if one
    /// is given, else into it, wherever they were before.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn optimize(
        &self,
        model: &Path,
        level: Level,
        out: &Path,
        data: Option<&str>,
    ) -> std::result::Result<(), String> {
        let level = match level {
            Level::Portable => GraphOptimizationLevel::Level1,
            Level::Native => GraphOptimizationLevel::All,
        };
        // Weights that lay outside the model would stay there without a name for the data file.
        let (data, from) = data.map_or(("weights", usize::MAX >> 1), |data| (data, 1024));
        let key = |name: &str| format!("session.optimized_model_external_initializers_{name}");
        let builder = Session::builder(&self.environment)
            .and_then(|b| Ok(b.with_optimization_level(level)?))
            .and_then(|b| Ok(b.with_optimized_model_path(out)?))
            .and_then(|b| Ok(b.with_config_entry(key("file_name"), data)?))
            .and_then(|b| Ok(b.with_config_entry(key("min_size_in_bytes"), from.to_string())?))
            // The session is never run.
            .and_then(|b| Ok(b.with_prepacking(false)?));
        builder.and_then(|mut b| b.commit_from_file(model)).map(drop).map_err(|e| e.to_string())
    }

    /// Channels a block in its kernels for blocks of channels, found by running one.
    ///
    /// # Errors
    /// What ONNX Runtime says, also where it has no such kernels.
    pub fn nchwc_block(&self) -> std::result::Result<u32, String> {
        let session = Session::builder(&self.environment)
            .and_then(|mut builder| builder.commit_from_memory(&probe::model()))
            .map_err(|e| e.to_string())?;
        let mut loaded = Loaded { path: PathBuf::new(), session };
        let ran = loaded.run(&BTreeMap::from([(probe::INPUT.to_string(), probe::input())]))?;
        let shape = ran.outputs.into_iter().next().map(|(_, output)| output.map(|o| o.shape));
        match shape {
            Some(Ok(shape)) => {
                let channels = shape.get(1).and_then(|&c| u32::try_from(c).ok());
                channels.ok_or_else(|| format!("the shape of a block is {shape:?}"))
            }
            Some(Err(what)) => Err(what),
            None => Err("no output".to_string()),
        }
    }

    /// Loads a model, with the custom op library if one is given.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn open(&self, model: &Path, library: Option<&Path>) -> std::result::Result<Loaded, String> {
        self.open_at(model, library, None)
    }

    /// Loads a model to run it node by node as it is written.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn open_unoptimized(&self, model: &Path) -> std::result::Result<Loaded, String> {
        self.open_at(model, None, Some(GraphOptimizationLevel::Disable))
    }

    fn open_at(
        &self,
        model: &Path,
        library: Option<&Path>,
        level: Option<GraphOptimizationLevel>,
    ) -> std::result::Result<Loaded, String> {
        let mut builder = Session::builder(&self.environment).map_err(|e| e.to_string())?;
        if let Some(level) = level {
            builder = builder.with_optimization_level(level).map_err(|e| e.to_string())?;
        }
        if let Some(threads) = self.threads {
            builder = builder.with_intra_threads(usize::from(threads)).map_err(|e| e.to_string())?;
        }
        if let Some(library) = library {
            builder = builder.with_operator_library(library).map_err(|e| e.to_string())?;
        }
        let session = builder.commit_from_file(model).map_err(|e| e.to_string())?;
        Ok(Loaded { path: model.to_path_buf(), session })
    }
}

/// The version that the library at `path` states.
fn version(path: &Path) -> Result<String> {
    let failed =
        |e: libloading::Error| Error::io(path, "read its version", std::io::Error::other(e.to_string()));
    // SAFETY: this is the library that is loaded already, so no initialiser runs; it stays loaded.
    let library = unsafe { libloading::Library::new(path) }.map_err(failed)?;
    // SAFETY: ONNX Runtime's one exported function has this signature in every version; the table that it returns
    // is static, and so is the text, a C string.
    let text = unsafe {
        let base =
            library.get::<unsafe extern "system" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0");
        let base = base.map_err(failed)?();
        CStr::from_ptr(((*base).GetVersionString)())
    };
    Ok(text.to_string_lossy().into_owned())
}

impl Loaded {
    /// The graph's inputs.
    ///
    /// # Errors
    /// One is not a tensor.
    pub fn inputs(&self) -> Result<Vec<Slot>> {
        self.session
            .inputs()
            .iter()
            .map(|input| {
                Slot::new(input.name(), input.dtype()).ok_or_else(|| {
                    let what = format!("input {:?} is not a tensor; --run cannot make one", input.name());
                    Error::unsupported(&self.path, what)
                })
            })
            .collect()
    }

    /// Runs the model once.
    ///
    /// # Errors
    /// What ONNX Runtime says.
    pub fn run(&mut self, inputs: &BTreeMap<String, Array>) -> std::result::Result<Ran, String> {
        let values = inputs
            .iter()
            .map(|(name, array)| Ok((name.as_str(), SessionInputValue::from(to_value(array)?))))
            .collect::<std::result::Result<Vec<_>, String>>()?;
        let start = Instant::now();
        let outputs = self.session.run(values).map_err(|e| e.to_string())?;
        let time = start.elapsed();
        let outputs = outputs
            .iter()
            .map(|(name, value)| {
                let array = match value.downcast::<DynTensorValueType>() {
                    Ok(tensor) => from_value(&tensor),
                    Err(_) => Err("is not a tensor".to_string()),
                };
                (name.to_string(), array)
            })
            .collect();
        Ok(Ran { outputs, time })
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    /// The outputs in the graph's order; for one that cannot be compared, what it is.
    pub outputs: Vec<(String, std::result::Result<Array, String>)>,
    /// Time that the run took.
    pub time: Duration,
}

fn to_value(array: &Array) -> std::result::Result<DynTensor, String> {
    let shape = Shape::new(array.shape.iter().copied());
    let mut value = DynTensor::new(&Allocator::default(), array.dtype, shape).map_err(|e| e.to_string())?;
    let size = element_size(array.dtype).zip(elements(&array.shape)).and_then(|(s, n)| s.checked_mul(n));
    if size != Some(array.bytes.len()) {
        return Err(format!("shape {:?} does not fit {} bytes", array.shape, array.bytes.len()));
    }
    if !array.bytes.is_empty() {
        // SAFETY: the value was just allocated in CPU memory for this dtype and shape, which take exactly
        // `array.bytes.len()` bytes; nobody else has it.
        unsafe {
            value
                .data_ptr_mut()
                .cast::<u8>()
                .copy_from_nonoverlapping(array.bytes.as_ptr(), array.bytes.len())
        };
    }
    Ok(value)
}

fn from_value(value: &DynTensor) -> std::result::Result<Array, String> {
    let dtype = *value.data_type();
    let shape: Vec<i64> = value.shape().iter().copied().collect();
    if dtype == TensorElementType::String {
        let (_, strings) = value.try_extract_strings().map_err(|e| e.to_string())?;
        // A length before each string, so that only equal lists have equal bytes.
        let bytes =
            strings.iter().flat_map(|s| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()).collect();
        return Ok(Array { dtype, shape, bytes });
    }
    let size = element_size(dtype).ok_or_else(|| format!("holds {dtype}"))?;
    let len = elements(&shape).and_then(|n| n.checked_mul(size)).ok_or("has an impossible shape")?;
    if !value.memory_info().is_cpu_accessible() {
        return Err("is not in CPU memory".to_string());
    }
    let mut bytes = vec![0u8; len];
    if len > 0 {
        // SAFETY: a tensor in CPU memory of this dtype and shape holds `len` bytes of plain numbers.
        unsafe { value.data_ptr().cast::<u8>().copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
    }
    Ok(Array { dtype, shape, bytes })
}
