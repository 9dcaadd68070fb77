//! From parsed options to the pipeline and from its documents to text.

use std::path::Path;
use std::time::Instant;

use nz_onnx::codec::Profile;

use super::Outcome;
use super::args::{
    CodingArgs, Command, CompensateArg, ConvertArgs, EnvArgs, Global, InspectArgs, PlanArgs, RestoreArgs,
    SelectArgs, TransformArg,
};
use super::args::{OptimizeArgs, OptimizeLevel, ProfileArg, TargetArgs, VerifyArgs};
use crate::delta::{self, DeltaOptions, shared};
use crate::onnx::{Error, Result};
use crate::pipeline::allocation::Target;
use crate::pipeline::calibrate::{CalibrateOptions, Compensate};
use crate::pipeline::convert::{ConvertOptions, convert};
use crate::pipeline::layering::Layers;
use crate::pipeline::optimize::{self, Level, OptimizeOptions};
use crate::pipeline::outputs::RunOptions;
use crate::pipeline::planning::{Options, Rounding, plan};
use crate::pipeline::runtime::locate;
use crate::pipeline::verify::{VerifyOptions, verify};
use crate::pipeline::{env, inspect, restore};
use crate::report::convert::Context;
use crate::report::{self, Progress, Style, json};
use crate::rewrite::Rules;

/// Runs one command.
pub(super) fn dispatch(
    command: &Command,
    global: &Global,
    progress: &Progress,
    style: Style,
) -> Result<Outcome> {
    let talk = Talk { global, progress, style };
    match command {
        Command::Convert(args) => talk.convert(args),
        Command::Plan(args) => talk.plan(args),
        Command::Inspect(args) => talk.inspect(args),
        Command::Verify(args) => talk.verify(args),
        Command::Restore(args) => talk.restore(args),
        Command::Env(args) => Ok(talk.env(args)),
    }
}

/// How a command talks.
struct Talk<'a> {
    global: &'a Global,
    progress: &'a Progress,
    style: Style,
}

impl Talk<'_> {
    /// The document as JSON, or `text`, which --quiet leaves out where the command's work is a file or a check.
    fn say(&self, document: &impl serde::Serialize, loud: bool, text: impl FnOnce() -> String) -> Outcome {
        let text = match (self.global.json, self.global.quiet && !loud) {
            (true, _) => json::render(document),
            (false, true) => String::new(),
            (false, false) => text(),
        };
        Outcome { text, passed: true }
    }

    fn convert(&self, args: &ConvertArgs) -> Result<Outcome> {
        let start = Instant::now();
        let shared = match &args.base {
            Some(base) => shared::is_shared(&args.model, base)?,
            None => false,
        };
        if let Some(base) = args.base.as_ref().filter(|_| !shared) {
            let options = DeltaOptions {
                base: base.clone(),
                output: args.output.output.clone(),
                force: args.output.force,
                dry_run: args.dry_run,
            };
            let document = delta::convert(&args.model, &options, self.progress)?;
            let text = || report::delta::summary(&document, start.elapsed(), self.style);
            return Ok(self.say(&document, false, text));
        }
        refuse_delta(&args.model)?;
        let mut target = args.target.clone();
        // What is shared with a base is exact.
        target.lossless |= shared;
        let options = ConvertOptions {
            base: args.base.clone(),
            plan: self.options(&target, &args.select, &args.coding, &args.optimize)?,
            optimize: optimizing(&args.optimize, args.coding.calibrate.is_some())?,
            output: args.output.output.clone(),
            force: args.output.force,
            dry_run: args.dry_run,
        };
        let document = convert(&args.model, &options, self.progress)?;
        document.warnings.iter().for_each(|warning| self.progress.warn(warning));
        let library = locate::library();
        let context = Context { elapsed: start.elapsed(), library: library.as_deref(), style: self.style };
        let needs = || match &args.base {
            Some(base) => {
                format!("It takes weights from the data file of {}, which must stay.\n", base.display())
            }
            None => String::new(),
        };
        Ok(self.say(&document, false, || report::convert::summary(&document, &context) + &needs()))
    }

    fn plan(&self, args: &PlanArgs) -> Result<Outcome> {
        refuse_delta(&args.model)?;
        let options = self.options(&args.target, &args.select, &args.coding, &args.optimize)?;
        let document = match optimizing(&args.optimize, args.coding.calibrate.is_some())? {
            None => plan(&args.model, &options, self.progress)?,
            Some(how) => optimize::plan(&args.model, &options, &how, self.progress)?,
        };
        document.warnings.iter().for_each(|warning| self.progress.warn(warning));
        Ok(self.say(&document, true, || {
            report::convert::plan(&document, options.rounding == Rounding::Cut, self.style)
        }))
    }

    fn options(
        &self,
        target: &TargetArgs,
        select: &SelectArgs,
        coding: &CodingArgs,
        ort: &OptimizeArgs,
    ) -> Result<Options> {
        let transform = coding.transform.unwrap_or(TransformArg::usual(target));
        let layers = layers(coding.layers.as_ref(), coding.profile, transform)?;
        if target.max_error.is_some() && transform == TransformArg::Grid {
            return Err(Error::Usage(
            "--max-error cannot be had with --transform grid, which bounds the relative error of no weight near \
             zero\nhelp: --transform cut or auto; or name --snr"
                .to_string(),
        ));
        }
        // One of them at most.
        let target = (target.lossless.then_some(Target::Lossless))
            .or(target.ratio.map(Target::Ratio))
            .or(target.size.map(Target::Size))
            .or(target.bits.map(Target::Bits))
            .or(target.max_error.map(Target::MaxError))
            .or(target.snr.map(Target::Snr))
            .or(target.mantissa_bits.map(Target::MantissaBits))
            .unwrap_or(Target::Default);
        let rules = Rules::new(select.min_size, &select.include, &select.exclude, &select.exclude_nodes)?
            .with_integers(select.integers);
        let profile = match coding.profile {
            ProfileArg::Compact => Profile::Compact,
            ProfileArg::Fast => Profile::Fast,
            ProfileArg::Gpu => Profile::Gpu,
        };
        let rounding = match transform {
            TransformArg::Cut => Rounding::Cut,
            TransformArg::Grid => Rounding::Grid,
            TransformArg::Auto => Rounding::Auto,
            TransformArg::Codebook => Rounding::Codebook,
        };
        let calibrate = coding.calibrate.as_ref().map(|inputs| CalibrateOptions {
            inputs: inputs.clone(),
            ort_lib: ort.ort_lib.clone(),
            threads: self.global.threads,
            kept: coding.calibration.clone(),
        });
        let compensate = match coding.compensate {
            None | Some(CompensateArg::Auto) => Compensate::Auto,
            Some(CompensateArg::On) => Compensate::On,
            Some(CompensateArg::Off) => Compensate::Off,
        };
        if coding.compensate == Some(CompensateArg::On) && coding.calibrate.is_none() {
            return Err(Error::Usage(
                "--compensate=on goes by inputs\nhelp: add --calibrate, or leave it to the rule that is there without"
                    .to_string(),
            ));
        }
        if coding.compensate == Some(CompensateArg::On)
            && !matches!(rounding, Rounding::Grid | Rounding::Auto)
        {
            return Err(Error::Usage(
                "--compensate is for weights on a grid\nhelp: add --transform grid or auto".to_string(),
            ));
        }
        Ok(Options { target, rules, profile, rounding, calibrate, compensate, layers })
    }

    fn inspect(&self, args: &InspectArgs) -> Result<Outcome> {
        if delta::is_delta(&args.file)? {
            let document = delta::inspect(&args.file)?;
            let passed = document.parts.iter().all(|part| part.checksum_ok != Some(false));
            if !passed {
                self.progress
                    .warn("a blob does not have the checksum that it states; `nz-onnx verify` says more");
            }
            let said = self.say(&document, true, || report::delta::inspect(&document, self.style));
            return Ok(Outcome { passed, ..said });
        }
        let document = inspect::inspect(&args.file)?;
        let passed = document.blobs.iter().all(|b| b.checksum_ok);
        if !passed {
            self.progress
                .warn("a blob does not have the checksum that it states; `nz-onnx verify` says more");
        }
        Ok(Outcome {
            passed,
            ..self.say(&document, true, || report::inspect::inspect(&document, self.style))
        })
    }

    fn verify(&self, args: &VerifyArgs) -> Result<Outcome> {
        let start = Instant::now();
        if delta::is_delta(&args.model)? {
            if args.original.is_some() {
                let what =
                    "a delta file, which has its original's SHA-256; --original is for converted models";
                return Err(Error::Usage(format!("{}: {what}", args.model.display())));
            }
            let document = delta::verify(&args.model, args.base.as_deref(), self.progress)?;
            let text = || report::delta::verify(&document, start.elapsed(), self.style);
            return Ok(Outcome { passed: document.ok, ..self.say(&document, !document.ok, text) });
        }
        if args.base.is_some() {
            let what = "is no delta file; --base is for those only";
            return Err(Error::Usage(format!("{}: {what}", args.model.display())));
        }
        let run = args.run.then(|| RunOptions {
            inputs: args.inputs.clone(),
            shapes: args.shape.iter().map(|s| (s.name.clone(), s.dims.clone())).collect(),
            seed: args.seed,
            tolerance: args.tolerance,
            library: args.library.clone(),
            threads: self.global.threads,
        });
        let options = VerifyOptions { original: args.original.clone(), ort_lib: args.ort_lib.clone(), run };
        let document = verify(&args.model, &options, self.progress)?;
        let text = || report::verify::verify(&document, start.elapsed(), self.style);
        // What failed shows even under --quiet.
        Ok(Outcome { passed: document.ok, ..self.say(&document, !document.ok, text) })
    }

    fn restore(&self, args: &RestoreArgs) -> Result<Outcome> {
        let start = Instant::now();
        let (output, force) = (args.output.output.as_deref(), args.output.force);
        let document = match (delta::is_delta(&args.model)?, &args.base) {
            (true, base) => delta::restore(&args.model, base.as_deref(), output, force)?,
            (false, None) => restore::restore(&args.model, output, force)?,
            (false, Some(_)) => {
                let what = "is no delta file; --base is for those only";
                return Err(Error::Usage(format!("{}: {what}", args.model.display())));
            }
        };
        Ok(self.say(&document, false, || report::convert::restore(&document, start.elapsed(), self.style)))
    }

    fn env(&self, args: &EnvArgs) -> Outcome {
        let document = env::env(args.ort_lib.as_deref());
        self.say(&document, true, || report::inspect::env(&document))
    }
}

fn optimizing(args: &OptimizeArgs, calibrating: bool) -> Result<Option<OptimizeOptions>> {
    let level = match args.optimize {
        OptimizeLevel::Off if args.ort_lib.is_some() && !calibrating => {
            return Err(Error::Usage(
                "--ort-lib is of use with --optimize portable or native, or --calibrate, only".to_string(),
            ));
        }
        OptimizeLevel::Off => return Ok(None),
        OptimizeLevel::Portable => Level::Portable,
        OptimizeLevel::Native => Level::Native,
    };
    Ok(Some(OptimizeOptions { level, ort_lib: args.ort_lib.clone() }))
}

/// The layers asked for, if they go with the rest.
fn layers(wanted: Option<&Layers>, profile: ProfileArg, transform: TransformArg) -> Result<Option<Layers>> {
    let clash = match (wanted, profile, transform) {
        (None, ..) => None,
        (_, _, TransformArg::Codebook) => Some(
            "--layers cannot be had with --transform codebook, whose weights have no bits that could be left out\nhelp: \
             --transform cut, grid or auto",
        ),
        (_, ProfileArg::Gpu, _) => Some(
            "--layers cannot be had with --profile gpu: GPUs read no layers\nhelp: --profile compact or fast",
        ),
        _ => None,
    };
    clash.map_or_else(|| Ok(wanted.cloned()), |clash| Err(Error::Usage(clash.to_string())))
}

/// Delta files are no models.
fn refuse_delta(path: &Path) -> Result<()> {
    if !delta::is_delta(path)? {
        return Ok(());
    }
    let what = "a delta file: `nz-onnx restore` makes the model of it, which checks it too";
    Err(Error::Usage(format!("{}: {what}", path.display())))
}
