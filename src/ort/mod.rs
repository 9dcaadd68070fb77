//! The glue to ONNX Runtime: the custom ops of `docs/ops.md` and the execution provider of `docs/ep.md`, each behind
//! its entry point of the C API.
//!
//! The library does not link to libonnxruntime. It works with the function tables that the host hands over: at API
//! level 17 for the ops, which every ONNX Runtime from 1.17 on has, and at 24 for the provider. No panic crosses into the host (module `fence`), no
//! kernel has mutable state, so one session may be run from many threads.

mod api;
mod cache;
mod cuda;
mod depth;
mod ep;
mod ep_sys;
mod fence;
mod kernels;
mod ops;
mod shape;
mod weight;

use std::ffi::CStr;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ort_sys::{OrtApiBase, OrtCustomOpDomain, OrtErrorCode, OrtSessionOptions, OrtStatusPtr};

use api::{Api, HostVersion};
use cache::Cache;
pub use cache::{CACHE_OPTION, CACHE_VARIABLE};
pub use cuda::emulate;
use depth::Limit;
pub use depth::{BITS_OPTION, BITS_VARIABLE, WEIGHTS_OPTION, WEIGHTS_VARIABLE};
pub use ep::{LOG_VARIABLE, PROVIDER, STATS_VARIABLE};
use fence::Result;
use ops::{DEFINITIONS, Op};
pub use weight::VERIFY_VARIABLE;

/// The domain of all ops.
pub const DOMAIN: &str = "nz";
const DOMAIN_C: &CStr = c"nz";
/// The level of ONNX Runtime's C API that is used: that of 1.17.
const API_LEVEL: u32 = 17;

/// The ops as one host knows them. They are registered with each session, and live as long as the process,
/// since a session may.
struct Host {
    api: Api,
    domain: *mut OrtCustomOpDomain,
}

// SAFETY: a domain is filled before it is shared and only read after; its address may be used on any thread.
unsafe impl Send for Host {}

/// More than one only if a process holds several copies of ONNX Runtime.
static HOSTS: Mutex<Vec<Host>> = Mutex::new(Vec::new());

/// Registers the ops with the session options: the entry point that `RegisterCustomOpsLibrary` and its kin in
/// every language look for.
///
/// Returns null for success, or a status that the caller owns.
///
/// # Safety
/// To be called by ONNX Runtime, with live session options and its API base.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "system" fn RegisterCustomOps(
    options: *mut OrtSessionOptions,
    base: *const OrtApiBase,
) -> OrtStatusPtr {
    // SAFETY: the host passes its static API base, or null by mistake.
    let Some(base) = (unsafe { base.as_ref() }) else {
        return OrtStatusPtr::default();
    };
    // SAFETY: a static C string of the host's.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy();
    let host = HostVersion::parse(&version);
    // SAFETY: the tables that `GetApi` returns are static.
    let (modern, oldest) =
        unsafe { (Api::new((base.GetApi)(API_LEVEL), host), Api::new((base.GetApi)(1), host)) };
    match (modern, oldest) {
        (Some(api), _) => fence::guard(api, || register(api, options)),
        (None, Some(oldest)) => {
            let message = format!(
                "nz-onnx {} needs ONNX Runtime 1.17 or later, this is {version}: update ONNX Runtime, or use the \
                 model as it was before `nz-onnx convert` (`nz-onnx restore` makes it)",
                crate::VERSION
            );
            oldest.status(OrtErrorCode::ORT_NOT_IMPLEMENTED, message)
        }
        // Not an ONNX Runtime: every one has level 1, and without it there is no way to say more.
        (None, None) => OrtStatusPtr::default(),
    }
}

fn register(api: Api, options: *mut OrtSessionOptions) -> Result<()> {
    // SAFETY: the options are live.
    let option = |name| unsafe { api.session_option(options, name) };
    let limit = depth::configured(option(BITS_OPTION)?, option(WEIGHTS_OPTION)?)?;
    let domain = domain(api, option(CACHE_OPTION)?, limit)?;
    // SAFETY: the options are live, and the domain is never released.
    api.check(unsafe { (api.table().AddCustomOpDomain)(options, domain) })
}

/// The ops for sessions that keep as many decoded weights as `budget` says, as [`Cache::configured`] takes it, and read
/// no more of layered ones than `limit`.
fn domain(api: Api, budget: Option<String>, limit: Option<Limit>) -> Result<*mut OrtCustomOpDomain> {
    match (Cache::configured(budget)?, limit) {
        (None, None) => shared_domain(api),
        // Ops of its own, because kernels know their session by the op that creates them.
        (cache, limit) => new_domain(api, cache.as_ref(), limit),
    }
}

/// The domain of all sessions that keep nothing decoded and read all there is.
fn shared_domain(api: Api) -> Result<*mut OrtCustomOpDomain> {
    let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(host) = hosts.iter().find(|host| ptr::eq(host.api.table(), api.table())) {
        return Ok(host.domain);
    }
    let domain = new_domain(api, None, None)?;
    hosts.push(Host { api, domain });
    Ok(domain)
}

fn new_domain(api: Api, cache: Option<&Arc<Cache>>, limit: Option<Limit>) -> Result<*mut OrtCustomOpDomain> {
    let mut domain = ptr::null_mut();
    // SAFETY: the name is a C string that the host copies.
    api.check(unsafe { (api.table().CreateCustomOpDomain)(DOMAIN_C.as_ptr(), &mut domain) })?;
    let add = |op: Op| {
        let op: &'static Op = Box::leak(Box::new(op));
        // SAFETY: domain and op are live; the op is leaked, because the host keeps its address.
        api.check(unsafe { (api.table().CustomOpDomain_Add)(domain, op.raw()) })
    };
    let emulated = cuda::is_emulated();
    for definition in DEFINITIONS.iter().filter(|d| !(emulated && d.is_among(&cuda::DEFINITIONS))) {
        Op::new(api, definition, cache.cloned()).within(limit).each().try_for_each(add)?;
    }
    for definition in &cuda::DEFINITIONS {
        let op = Op::new(api, definition, cache.cloned()).within(limit);
        add(if emulated { op.on_cpu() } else { op })?;
    }
    Ok(domain)
}
