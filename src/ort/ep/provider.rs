//! One session's provider: it takes the weights that pay and runs the nodes that read them.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Instant;

use ort_sys::{OrtGraph, OrtLogger, OrtSessionOptions, OrtStatusPtr};

use super::claim::{self, Claim};
use super::graph::{Graph, Identity, Node};
use super::kernel::{Maker, Registry};
use super::options::Options;
use super::plan::{Plan, plan};
use super::session::{Log, Shared};
use super::slot::Reading;
use super::store::Store;
use super::ties;
use super::{EpApi, PROVIDER_C};
use crate::ort::ep_sys::{self, EP_API_NEWEST, OrtEp, OrtEpGraphSupportInfo, OrtKernelRegistry};
use crate::ort::fence::{self, Failure, Result};

/// The host holds the address of `table`, the first field, and so of the whole.
#[repr(C)]
pub(super) struct Provider {
    table: OrtEp,
    api: EpApi,
    options: Options,
    shared: Arc<Shared>,
    log: Log,
    /// Weights by name: what was decided about them, where ONNX Runtime asked. It may ask more than once.
    decided: Mutex<Decided>,
    settled: Once,
    /// Filled in right after the provider has its address; the kernels' makers lie behind the registry's back.
    registry: Option<(Registry, Box<[Maker]>)>,
}

#[derive(Default)]
struct Decided {
    weights: HashMap<String, DecidedWeight>,
    failure: Option<Failure>,
}

struct DecidedWeight {
    identity: Identity,
    /// Nothing where it stays as it is.
    reading: Option<Reading>,
}

impl Provider {
    /// The provider of a session.
    ///
    /// # Safety
    /// Options and logger are the session's own, and the logger lives as long as the provider is used.
    pub unsafe fn create(
        api: EpApi,
        options: *const OrtSessionOptions,
        logger: *const OrtLogger,
    ) -> Result<*mut OrtEp> {
        // SAFETY: the caller's promise.
        let mut options = unsafe { Options::read(api, options) }?;
        let store = options.cache_dir.take().map(Store::open).transpose()?;
        let table = OrtEp {
            ort_version_supported: api.api().host().0.min(EP_API_NEWEST),
            GetName: get_name,
            GetCapability: get_capability,
            _3: ep_sys::gap(),
            OnRunStart: on_run_start,
            _9: ep_sys::gap(),
            GetKernelRegistry: get_kernel_registry,
            IsConcurrentRunSupported: is_concurrent_run_supported,
            _15: ep_sys::gap(),
            OnSessionInitializationEnd: on_session_initialization_end,
            _23: ep_sys::gap(),
        };
        let shared = Arc::new(Shared::new(options.cache.take(), store));
        let (log, decided, settled) = (Log::new(api, logger), Mutex::default(), Once::new());
        let made = Provider { table, api, options, shared, log, decided, settled, registry: None };
        let provider = Box::into_raw(Box::new(made));
        // SAFETY: the provider is ours alone until it is returned; it owns the registry that knows its address.
        unsafe {
            match Registry::new(api, provider) {
                Ok(registry) => (*provider).registry = Some(registry),
                Err(failure) => {
                    drop(Box::from_raw(provider));
                    return Err(failure);
                }
            }
        }
        Ok(provider.cast())
    }

    /// Takes a provider back.
    ///
    /// # Safety
    /// `raw` comes from [`Provider::create`] and is not used any more.
    pub unsafe fn release(raw: *mut OrtEp) {
        if !raw.is_null() {
            // SAFETY: the caller's promise.
            drop(unsafe { Box::from_raw(raw.cast::<Provider>()) });
        }
    }

    pub fn api(&self) -> EpApi {
        self.api
    }

    /// Where the weight of that name goes.
    pub fn reading(&self, name: &str) -> Result<Reading> {
        let decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &decided.failure {
            return Err(failure.clone());
        }
        let reading = decided.weights.get(name).and_then(|weight| weight.reading.clone());
        reading.ok_or_else(|| Failure::fail(format!("internal error: weight '{name}' was not asked for")))
    }

    /// Takes the nodes of `graph` whose weights pay.
    fn claim(&self, graph: &Graph<'_>, support: *mut OrtEpGraphSupportInfo) -> Result<()> {
        let (api, ep) = (self.api, self.api.ep());
        if !self.options.packs {
            if graph.is_nested()? {
                return Ok(());
            }
            let why = "session.disable_prepacking=1 keeps every original in memory";
            self.log.warn(&format!("{why}: no weight is compressed"));
            return Ok(());
        }
        let has_kernel = |node: &Node<'_>| {
            let mut found = std::ptr::null();
            // SAFETY: graph and support info are live during this call.
            api.check(unsafe { (ep.EpGraphSupportInfo_LookUpKernel)(support, node.raw(), &mut found) })?;
            Ok(!found.is_null())
        };
        let folder = graph.folder()?;
        let claims = claim::find(graph, self.options.min_size, self.options.slow, has_kernel)?;
        let mut claims =
            ties::join(claims, |rows, columns| self.is_transpose(folder.as_deref(), rows, columns))?;
        claims.retain(|claim| !claim.is_mapped());
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        // Graphs may use a name for different weights, and a kernel knows but the name: the first weight has it.
        let is_known = |name: &str| decided.weights.contains_key(name);
        let is_other = |claim: &Claim<'_>| {
            let is_other = |name: &str, identity: &Identity| {
                decided.weights.get(name).is_some_and(|known| known.identity != *identity)
            };
            // A weight and its transpose are decided about together.
            is_other(&claim.name, &claim.identity)
                || claim.turned.iter().any(|(name, identity)| {
                    is_other(name, identity) || is_known(name) != is_known(&claim.name)
                })
        };
        let mut free: Vec<bool> = claims.iter().map(|claim| !is_other(claim)).collect();
        claim::agree(&claims, &mut free);
        let claims = claims.into_iter().zip(free).filter(|(_, free)| *free).map(|(claim, _)| claim);
        let (known, new): (Vec<_>, Vec<_>) =
            claims.partition(|claim| decided.weights.contains_key(&claim.name));
        let Plan { slots, failure } =
            plan(&new, folder.as_deref(), &self.options.aim, &self.shared, &self.log)?;
        decided.failure = decided.failure.take().or(failure);
        for (claim, slot) in new.iter().zip(slots) {
            let itself = std::iter::once((&claim.name, &claim.identity, false));
            let turned = claim.turned.iter().map(|(name, identity)| (name, identity, true));
            for (name, identity, turned) in itself.chain(turned) {
                let reading = slot.clone().map(|slot| Reading { slot, turned });
                decided.weights.insert(name.clone(), DecidedWeight { identity: identity.clone(), reading });
            }
        }
        let is_taken =
            |claim: &Claim<'_>| decided.weights.get(&claim.name).is_some_and(|w| w.reading.is_some());
        let mut added = HashSet::new();
        for claim in known.iter().chain(&new).filter(|claim| is_taken(claim)) {
            for node in claim.uses.iter().map(|u| u.node.raw()).filter(|&node| added.insert(node)) {
                // SAFETY: graph and support info are live during this call.
                api.check(unsafe { (ep.EpGraphSupportInfo_AddSingleNode)(support, node) })?;
            }
        }
        Ok(())
    }

    /// Whether `columns` is the transpose of `rows`. What cannot be read is not; ONNX Runtime will say the same of it.
    fn is_transpose<'a>(&self, folder: Option<&Path>, rows: &Claim<'a>, columns: &Claim<'a>) -> Result<bool> {
        let of = |claim: &Claim<'a>| claim.value.bytes(folder, claim.spec.dtype, claim.size);
        let (Ok(a), Ok(b), &[height, width]) = (of(rows), of(columns), &rows.shape[..]) else {
            return Ok(false);
        };
        let (size, shape) = (rows.spec.dtype.size(), (height as usize, width as usize));
        self.shared.on_all_cores(|| ties::is_transpose(a.as_slice(), b.as_slice(), size, shape))
    }

    /// The session is made.
    fn settle(&self) {
        self.settled.call_once(|| {
            if self.shared.tally.weights() > 0 {
                self.shared.rest();
            }
            self.log.sum_up(&self.shared.tally);
        });
    }
}

/// The provider behind a pointer of the host's.
///
/// # Safety
/// `this` comes from [`Provider::create`] and lives for `'a`.
unsafe fn provider<'a>(this: *const OrtEp) -> &'a Provider {
    // SAFETY: the caller's promise; a provider is only read once it is made.
    unsafe { &*this.cast() }
}

unsafe extern "system" fn get_name(_: *const OrtEp) -> *const c_char {
    PROVIDER_C.as_ptr()
}

unsafe extern "system" fn get_capability(
    this: *mut OrtEp,
    graph: *const OrtGraph,
    support: *mut OrtEpGraphSupportInfo,
) -> OrtStatusPtr {
    // SAFETY: the host passes what `create` gave it.
    let provider = unsafe { provider(this) };
    fence::guard(provider.api.api(), || {
        let started = Instant::now();
        // SAFETY: the graph lives for this call.
        let graph = unsafe { Graph::new(provider.api, graph) };
        let claimed = provider.claim(&graph, support);
        provider.shared.tally.spent(started.elapsed());
        claimed
    })
}

unsafe extern "system" fn get_kernel_registry(
    this: *mut OrtEp,
    out: *mut *const OrtKernelRegistry,
) -> OrtStatusPtr {
    // SAFETY: as in `get_capability`; the host has a place for the answer.
    unsafe {
        let registry = provider(this).registry.as_ref();
        out.write(registry.map_or(std::ptr::null(), |(registry, _)| registry.raw()));
    }
    OrtStatusPtr::default()
}

unsafe extern "system" fn is_concurrent_run_supported(_: *mut OrtEp, out: *mut bool) -> OrtStatusPtr {
    // SAFETY: the host's place for the answer.
    unsafe { out.write(true) };
    OrtStatusPtr::default()
}

unsafe extern "system" fn on_session_initialization_end(this: *mut OrtEp) -> OrtStatusPtr {
    // SAFETY: as in `get_capability`.
    let provider = unsafe { provider(this) };
    fence::guard(provider.api.api(), || {
        provider.settle();
        Ok(())
    })
}

/// ONNX Runtime before 1.27 does not say when a session is made: its first run tells.
unsafe extern "system" fn on_run_start(this: *mut OrtEp, _: *const c_void) -> OrtStatusPtr {
    // SAFETY: as in `get_capability`.
    unsafe { on_session_initialization_end(this) }
}
