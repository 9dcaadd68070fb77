use super::*;

fn candidate(n: u64, lossless: u64, rounded: Vec<u64>) -> Candidate {
    Candidate {
        bytes: 4 * n,
        elements: n,
        copies: 1,
        lossless,
        rounded,
        rounded_noise: (0..23).map(usual_noise).collect(),
        floor: 10,
        grids: None,
        folded: Vec::new(),
        sensitivity: 1.0,
    }
}

/// A float32 weight of `n` elements whose exponents take 2.6 bits.
fn float32(n: u64) -> Candidate {
    let size = |bits: f64| (n as f64 * bits / 8.0) as u64;
    let rounded = (0..23).map(|k| size(3.6 + f64::from(k))).collect();
    candidate(n, size(26.6), rounded)
}

fn upcast(n: u64) -> Candidate {
    let mut c = float32(n);
    c.lossless = c.rounded[10];
    c.rounded[10..].fill(c.lossless);
    c
}

fn incompressible(n: u64) -> Candidate {
    candidate(n, 4 * n + 100, vec![4 * n + 100; 23])
}

#[test]
fn lossless_cuts_nothing() {
    let a = allocate(&[float32(1000), incompressible(10)], 7, Target::Lossless);
    assert_eq!(a.encodings, [Encoding::Lossless, Encoding::Keep(140)]);
    assert_eq!(a.bytes_after, 3325 + 40 + 7);
}

#[test]
fn default_takes_the_largest_k_in_half() {
    let a = allocate(&[float32(1000), upcast(1000)], 0, Target::Default);
    assert_eq!(a.encodings, [Encoding::Mantissa(12), Encoding::Lossless]);
    assert!(a.reached);
}

#[test]
fn default_rounds_nothing_where_lossless_gives_half_in_all() {
    // A header makes the small one a little more than half.
    let mut small = upcast(1000);
    small.lossless = 2010;
    let a = allocate(&[small, upcast(9000)], 0, Target::Default);
    assert_eq!(a.encodings, [Encoding::Lossless; 2]);
    assert!(a.reached);
}

#[test]
fn default_pays_for_kept_weights_down_to_the_floor() {
    let a = allocate(&[float32(1000)], 250, Target::Default);
    assert_eq!(a.encodings, [Encoding::Mantissa(11)]);
    assert!(a.reached);
    let a = allocate(&[float32(1000)], 4000, Target::Default);
    assert_eq!(a.encodings, [Encoding::Mantissa(10)]);
    assert!(!a.reached);
}

#[test]
fn what_is_short_comes_from_where_it_hurts_least() {
    let two = [float32(1000), float32(2000)];
    assert_eq!(allocate(&two, 0, Target::Ratio(0.9)).encodings, [Encoding::Lossless; 2]);
    let a = allocate(&two, 0, Target::Ratio(0.82));
    assert_eq!(a.encodings, [Encoding::Lossless, Encoding::Mantissa(22)], "more bytes for the same error");
    let bits = |candidates: &[Candidate]| -> Vec<u8> {
        let encodings = allocate(candidates, 0, Target::Ratio(0.3)).encodings;
        let bits = encodings.into_iter().map(|encoding| match encoding {
            Encoding::Mantissa(k) => k,
            other => panic!("{other:?}"),
        });
        bits.collect()
    };
    // A bit of the largest saves 64 times the bytes of another's, and a bit is a factor of four in noise.
    let mut many = vec![float32(1000); 64];
    many.push(float32(64_000));
    let found = bits(&many);
    assert!(found[..64].iter().all(|&k| (3..=4).contains(&(k - found[64]))), "{found:?}");
    // So much more sensitive, it is to be as exact.
    many[64].sensitivity = 64.0;
    let found = bits(&many);
    assert!(found[..64].iter().all(|&k| k.abs_diff(found[64]) <= 1), "{found:?}");
    let a = allocate(&[float32(1000), upcast(1000)], 0, Target::Ratio(0.5));
    assert_eq!(
        a.encodings,
        [Encoding::Mantissa(14), Encoding::Lossless],
        "10 bits that are all there come last"
    );
}

#[test]
fn the_allotment_is_the_best_of_all() {
    let mut three = [float32(300), upcast(500), with_grids(float32(700), false)];
    for (candidate, sensitivity) in three.iter_mut().zip([1.0, 0.2, 7.0]) {
        candidate.sensitivity = sensitivity;
    }
    let noise = |encodings: [Encoding; 3]| -> f64 {
        let of = |(c, e): (&Candidate, Encoding)| c.sensitivity * c.noise(e).unwrap();
        three.iter().zip(encodings).map(of).sum()
    };
    let sizes = |c: &Candidate| -> Vec<(Encoding, u64)> {
        let cuts = c.rounded.iter().enumerate().map(|(k, &size)| (Encoding::Mantissa(k as u8), size));
        let grids =
            c.grids.iter().flat_map(|g| &g.steps).map(|&(step, size, _)| (Encoding::Grid(step), size));
        cuts.chain(grids).chain([(Encoding::Lossless, c.lossless)]).collect()
    };
    for budget in [1400u64, 1700, 2500, 4000] {
        let a = allocate(&three, 0, Target::Size(budget));
        assert!(a.reached && a.bytes_after <= budget);
        let mut best = f64::INFINITY;
        for (x, i) in sizes(&three[0]) {
            for &(y, j) in &sizes(&three[1]) {
                for &(z, k) in &sizes(&three[2]) {
                    if i + j + k <= budget {
                        best = best.min(noise([x, y, z]));
                    }
                }
            }
        }
        let found = noise([a.encodings[0], a.encodings[1], a.encodings[2]]);
        // Steps are whole: the best of all can use the last bytes better.
        assert!(found <= best * 1.3, "{budget}: {found:e}, {best:e}");
    }
}

#[test]
fn a_size_and_bits_are_what_a_ratio_is() {
    let two = [float32(1000), float32(2000)];
    let by_ratio = allocate(&two, 500, Target::Ratio(0.4));
    assert_eq!(allocate(&two, 500, Target::Size(5000)), by_ratio);
    assert!(by_ratio.bytes_after <= 5000 && by_ratio.bytes_after > 4900);
    // What is kept has no part in the bits.
    let three = [float32(1000), float32(2000), incompressible(10)];
    let a = allocate(&three, 500, Target::Bits(6.0));
    assert!(a.reached && a.bits_per_weight <= 6.0 && a.bits_per_weight > 5.5, "{a:?}");
    assert_eq!(a.bytes_after, (a.bits_per_weight * 3000.0 / 8.0).round() as u64 + 40 + 500);
    // A weight that only rounding makes smaller counts once it is rounded.
    let random = Candidate { lossless: 4000, ..float32(1000) };
    let a = allocate(&[random, float32(1000)], 0, Target::Bits(8.0));
    assert!(a.reached && a.bits_per_weight <= 8.0 && a.bits_per_weight > 7.0, "{a:?}");
    let a = allocate(&three, 500, Target::Bits(1.0));
    assert!(!a.reached);
    assert!((a.bits_per_weight - 3.6).abs() < 1e-9);
}

#[test]
fn an_error_asked_for_is_kept_with_the_fewest_bytes() {
    let two = [float32(1000), with_grids(float32(2000), false)];
    for (most, k) in [(error_bound(7), 7), (error_bound(7) * 1.9, 7), (0.34, 0)] {
        let a = allocate(&two, 0, Target::MaxError(most));
        assert_eq!(a.encodings, [Encoding::Mantissa(k); 2], "{most}");
    }
    assert_eq!(allocate(&two, 0, Target::MaxError(0.0)).encodings, [Encoding::Lossless; 2]);
    assert_eq!(allocate(&[upcast(1000)], 0, Target::MaxError(1e-4)).encodings, [Encoding::Lossless]);
    let a = allocate(&two, 0, Target::Snr(40.0));
    let [Encoding::Mantissa(k), grid @ Encoding::Grid(_)] = a.encodings[..] else { panic!("{a:?}") };
    assert!(usual_noise(k) <= 1e-4 && usual_noise(k - 1) > 1e-4);
    assert!(two[1].noise(grid).unwrap() <= 1e-4);
    assert_eq!(allocate(&two, 0, Target::Snr(500.0)).encodings, [Encoding::Lossless; 2]);
}

#[test]
fn the_curve_runs_from_lossless_to_the_least() {
    let three = [with_grids(float32(1000), false), float32(2000), incompressible(10)];
    let curve = curve(&three, 100, 16);
    assert!(curve.len() >= 12 && curve.len() <= 16, "{}", curve.len());
    let first = allocate(&three, 100, Target::Lossless);
    assert_eq!((curve[0].bytes_after, curve[0].noise), (first.bytes_after, 0.0));
    let least = allocate(&three, 100, Target::Size(0));
    assert_eq!(curve[curve.len() - 1].bytes_after, least.bytes_after);
    for pair in curve.windows(2) {
        assert!(pair[0].bytes_after > pair[1].bytes_after && pair[0].noise < pair[1].noise);
    }
    // A point can be had by its size.
    let there = allocate(&three, 100, Target::Size(curve[7].bytes_after));
    assert!(there.reached && there.bits_per_weight >= curve[7].bits_per_weight - 1e-9);
}

#[test]
fn unreachable_ratio_says_the_best() {
    let a = allocate(&[float32(1000)], 100, Target::Ratio(0.01));
    assert!(!a.reached);
    assert_eq!(a.encodings, [Encoding::Mantissa(0)]);
    assert_eq!(a.bytes_after, 450 + 100);
}

#[test]
fn mantissa_bits_are_a_ceiling() {
    let all = [float32(1000), upcast(1000), incompressible(10)];
    let a = allocate(&all, 0, Target::MantissaBits(12));
    assert_eq!(a.encodings, [Encoding::Mantissa(12), Encoding::Lossless, Encoding::Keep(140)]);
    let a = allocate(&all, 0, Target::MantissaBits(4));
    assert_eq!(a.encodings, [Encoding::Mantissa(4), Encoding::Mantissa(4), Encoding::Keep(140)]);
    let a = allocate(&all, 0, Target::MantissaBits(23));
    assert_eq!(a.encodings[0], Encoding::Lossless);
}

#[test]
fn copies_share_a_blob() {
    let tied = Candidate { copies: 2, ..float32(1000) };
    let a = allocate(&[tied], 0, Target::Default);
    assert_eq!(a.encodings, [Encoding::Lossless], "one blob for two is less than half");
    assert_eq!(a.bytes_after, 3325);
}

/// The same weight, whose error grids of the same size make half as large.
fn with_grids(candidate: Candidate, only: bool) -> Candidate {
    let noise = |bits: f64| (-2.0 * bits).exp2();
    let steps = GridStep::all().map(|step| {
        let bits = f64::from(step.raw_bits) + step.cell as f64 / 4.0;
        let size = (candidate.bytes as f64 / 32.0 * (3.6 + bits)) as u64;
        (step, size, noise(bits + 1.0))
    });
    let grids = Grids { steps: steps.collect(), only };
    Candidate { grids: Some(grids), rounded_noise: (0..23).map(|k| noise(k.into())).collect(), ..candidate }
}

#[test]
fn grids_are_taken_where_they_are_closer_at_the_same_size() {
    let a = allocate(&[with_grids(float32(1000), false)], 0, Target::Ratio(0.25));
    assert_eq!(a.encodings, [Encoding::Grid(GridStep { cell: 1, raw_bits: 4 })]);
    assert!(a.reached && a.bytes_after <= 1000);
    // Beyond the finest grid, mantissa bits; not if only grids are wanted.
    let a = allocate(&[with_grids(float32(1000), false)], 0, Target::Ratio(0.8));
    assert_eq!(a.encodings, [Encoding::Mantissa(22)]);
    let a = allocate(&[with_grids(float32(1000), true)], 0, Target::Ratio(0.8));
    assert_eq!(a.encodings, [Encoding::Grid(GridStep { cell: 3, raw_bits: 15 })]);
    let a = allocate(&[with_grids(float32(1000), true)], 0, Target::Ratio(0.9));
    assert_eq!(a.encodings, [Encoding::Lossless]);
    // Where no grid can hold it, there is no other way.
    let mut none = with_grids(float32(1000), true);
    none.grids.as_mut().expect("just made").steps.clear();
    let a = allocate(&[none], 0, Target::Ratio(0.5));
    assert_eq!(a.encodings, [Encoding::Mantissa(12)]);
}

#[test]
fn precision_is_evened_out_over_grids_and_mantissa_bits() {
    let mut cut = with_grids(float32(1000), false);
    cut.grids.as_mut().expect("just made").steps.clear();
    let a = allocate(&[cut, with_grids(float32(1000), true)], 0, Target::Ratio(0.4));
    let [Encoding::Mantissa(k), Encoding::Grid(step)] = a.encodings[..] else { panic!("{a:?}") };
    let bits = f64::from(step.raw_bits) + step.cell as f64 / 4.0 + 1.0;
    assert!((f64::from(k) - bits).abs() <= 1.5, "{a:?}");
}

#[test]
fn the_floor_holds_for_grids() {
    let a = allocate(&[with_grids(float32(1000), false)], 4000, Target::Default);
    assert!(!a.reached);
    let [Encoding::Grid(step)] = a.encodings[..] else { panic!("{a:?}") };
    assert_eq!((step.raw_bits, step.cell), (9, 0), "as exact as 10 mantissa bits");
}

/// A constant of `n` elements at 16 and 8 bits.
fn constant(n: u64) -> Candidate {
    Candidate::folded(n, vec![(Folded::Half, 2 * n, 1e-7), (Folded::Rows, n + n / 9 * 4, 1e-5)])
}

#[test]
fn constants_are_shorter_only_where_the_size_is_asked_for() {
    let all = [float32(9000), constant(900)];
    let keep = Encoding::Keep(1300);
    for target in [Target::Default, Target::Lossless, Target::MantissaBits(5), Target::MaxError(0.1)] {
        let found = allocate(&all, 0, target).encodings[1];
        assert!(matches!(found, Encoding::Keep(_)), "{target:?}: {found:?}");
    }
    assert_eq!(allocate(&all, 0, Target::Size(34_000)).encodings[1], keep, "nothing is short");
    assert_eq!(allocate(&all, 0, Target::Ratio(0.4)).encodings[1], Encoding::Folded(Folded::Half));
    let coarse = allocate(&all, 0, Target::Size(5_500));
    assert_eq!(coarse.encodings[1], Encoding::Folded(Folded::Rows));
    assert!(coarse.reached && coarse.bytes_after <= 5_500);
    assert_eq!(allocate(&all, 0, Target::Snr(60.0)).encodings[1], Encoding::Folded(Folded::Half));
    assert_eq!(allocate(&all, 0, Target::Snr(40.0)).encodings[1], Encoding::Folded(Folded::Rows));
    // They count among the bits.
    for bits in [6.0, 9.0, 14.0] {
        let a = allocate(&all, 500, Target::Bits(bits));
        assert!(a.reached && a.bits_per_weight <= bits && a.bits_per_weight > bits - 0.5, "{a:?}");
        assert_eq!(a.bytes_after, (a.bits_per_weight * 9900.0 / 8.0).round() as u64 + 500);
    }
}
