//! The machine that figures belong to, in words.

/// Instruction sets worth a mention, as /proc/cpuinfo calls them.
const FEATURES: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "avx_vnni",
    "asimd",
    "sve",
];

/// Processor, instruction sets, cores, caches and memory of this machine; what cannot be found out is left out.
pub fn describe() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parts = vec![processor(&cpuinfo)];
    parts.extend(features(&cpuinfo));
    parts.push(format!("{cores} {}", if cores == 1 { "core" } else { "cores" }));
    parts.extend(caches());
    parts.extend(memory(&meminfo));
    parts.join(", ")
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn processor(cpuinfo: &str) -> String {
    let name = field(cpuinfo, "model name").map_or_else(|| std::env::consts::ARCH.to_owned(), str::to_owned);
    // Virtual machines often hide the name; family and model tell the microarchitecture all the same.
    match (field(cpuinfo, "cpu family"), field(cpuinfo, "model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}

fn features(cpuinfo: &str) -> Option<String> {
    let flags = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features"))?;
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let found: Vec<&str> = FEATURES.iter().copied().filter(|feature| flags.contains(feature)).collect();
    (!found.is_empty()).then(|| found.join(" "))
}

fn caches() -> Option<String> {
    let mut found = Vec::new();
    for index in 0.. {
        let read = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else {
            break;
        };
        if kind != "Instruction" {
            found.push(format!("L{level} {}", cache_size(&size)));
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}

/// "266240K" in words.
fn cache_size(text: &str) -> String {
    match text.strip_suffix('K').and_then(|kib| kib.parse::<u64>().ok()) {
        Some(kib) if kib >= 1024 && kib % 1024 == 0 => format!("{} MiB", kib / 1024),
        Some(kib) => format!("{kib} KiB"),
        None => text.to_owned(),
    }
}

fn memory(meminfo: &str) -> Option<String> {
    let kib: u64 = field(meminfo, "MemTotal")?.split_whitespace().next()?.parse().ok()?;
    Some(format!("{} GiB of memory", (kib + (1 << 19)) >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_with_what_it_can_do() {
        let text = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Some CPU\n\
                    flags\t\t: fpu avx avx2 avx512f xsave\n";
        assert_eq!(processor(text), "Some CPU (family 6, model 207)");
        assert_eq!(features(text).as_deref(), Some("avx2 avx512f"));
        assert_eq!(memory("MemTotal:       24000000 kB\n").as_deref(), Some("23 GiB of memory"));
        assert_eq!(features("flags : none"), None);
        assert_eq!(memory(""), None);
        assert_eq!([cache_size("48K"), cache_size("266240K")], ["48 KiB", "260 MiB"]);
    }
}
