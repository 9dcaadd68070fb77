"""Others that decode compressed weights on a GPU: nvCOMP's ANS and DFloat11, both from PyPI.

A row that cannot be measured says why.
"""

import time

import numpy as np

from bench_common import reason, samples, table, value

COLUMNS = ["what", "bits a weight", "TB/s of output", "why not"]
ROUNDS, CALLS = 9, 10


def normal_bfloat16(count, seed=0):
    """The bits of normally distributed bfloat16 weights."""
    rng = np.random.default_rng(seed)
    words = (rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)).view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


def halves(weights):
    """The exponents, and sign and mantissa, a byte each."""
    return (weights >> 7 & 0xFF).astype(np.uint8), (weights >> 8 & 0x80 | weights & 0x7F).astype(np.uint8)


def rates(call, wait, output_bytes):
    """TB/s of output, by round; the first one warms up and is dropped."""
    found = []
    for _ in range(ROUNDS + 1):
        wait()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait()
        found.append(CALLS * output_bytes / (time.perf_counter() - start) / 1e12)
    return found[1:]


def nvcomp_ans(count):
    """ANS over the exponents alone, which is the part that has to be decoded: bits, and a rate of the exponents' bytes
    times two, as if the raw bytes came for nothing."""
    import cupy
    from nvidia import nvcomp

    exponents, raw = halves(normal_bfloat16(count))
    codec = nvcomp.Codec(algorithm="ANS", data_type="|u1")
    source = nvcomp.as_array(cupy.asarray(exponents))
    encoded = codec.encode(source)
    decoded = cupy.asarray(codec.decode(encoded)).view(cupy.uint8)
    if not np.array_equal(cupy.asnumpy(decoded), exponents):
        raise RuntimeError("nvCOMP decodes something else")
    bits = 8 * (encoded.buffer_size + raw.size) / count
    return bits, rates(lambda: codec.decode(encoded), cupy.cuda.runtime.deviceSynchronize, 2 * count)


def dfloat11(count):
    """DFloat11's kernel over the code that its own encoder makes."""
    import cupy
    import torch
    from dfloat11 import dfloat11 as package
    from dfloat11 import dfloat11_utils as tools

    weights = torch.from_numpy(normal_bfloat16(count).view(np.int16)).view(torch.bfloat16)
    _, counter = tools.get_codec(weights)
    codec, _, codes = tools.get_32bit_codec(counter)
    per_thread, threads = package.bytes_per_thread, package.threads_per_block[0]
    encoded, raw, positions, gaps, _ = tools.encode_weights([weights], codec, per_thread, threads)
    starts = positions.view(torch.uint32).numpy().astype(np.int64)
    shared = int(threads * 4 + 4 + np.diff(starts).max() * 2)
    parts = [part.cuda() for part in (tools.get_luts(codes), encoded, raw, positions.view(torch.int32), gaps)]
    out = torch.empty(count, dtype=torch.bfloat16, device="cuda")
    grid = (-(-encoded.numel() // (threads * per_thread)),)
    arguments = [*(part.data_ptr() for part in parts), out.data_ptr(), parts[0].shape[0], encoded.numel(), count]

    def decode():
        package._decode(grid=grid, block=(threads,), shared_mem=shared, args=arguments)

    decode()
    cupy.cuda.runtime.deviceSynchronize()
    if not torch.equal(out.cpu().view(torch.int16), weights.view(torch.int16)):
        raise RuntimeError("DFloat11 decodes something else")
    bits = 8 * sum(part.numel() * part.element_size() for part in parts) / count
    return bits, rates(decode, cupy.cuda.runtime.deviceSynchronize, 2 * count)


def row(name, measure, count):
    """A line of the table. `measure` gives bits a weight and rates, or fails."""
    try:
        bits, found = measure(count)
    except Exception as error:
        return [name, None, None, reason(error)]
    return [name, value(bits, 2), samples(found), None]


def peers(quick):
    large, small = (1 << 20, 1 << 16) if quick else (1 << 26, 1 << 24)
    rows = [
        row(f"nvCOMP ANS, exponents of {large} bfloat16 weights", nvcomp_ans, large),
        # Its encoder is Python, a weight at a time.
        row(f"DFloat11, {small} bfloat16 weights", dfloat11, small),
    ]
    return table("Other decoders of bfloat16 weights", COLUMNS, rows)
