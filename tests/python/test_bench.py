"""What the measuring scripts compute on the way; `cargo xtask bench --quick` runs them whole."""

import nzlib  # noqa: F401  (finds the scripts)
import numpy as np
import pytest
from bench_common import bound, ratios, reason, run_in_turns


@pytest.mark.parametrize("mantissa, bits_type", [(23, np.uint32), (10, np.uint16), (7, np.uint16)])
def test_the_bound_counts_exponents_sign_and_the_mantissa_bits_in_use(mantissa, bits_type):
    exponents = np.repeat([1, 2, 3, 4], 256)  # two bits of entropy
    exact = (exponents << mantissa).astype(bits_type)
    assert bound(exact, mantissa) == 1024 * (2 + 1)
    signs = bits_type(1 << (8 * bits_type().itemsize - 1))
    assert bound(exact | signs, mantissa) == 1024 * (2 + 1)
    one_bit_below_the_top = exact.copy()
    one_bit_below_the_top[5] |= bits_type(1 << (mantissa - 2))
    assert bound(one_bit_below_the_top, mantissa) == 1024 * (2 + 1 + 2)
    full = exact | bits_type(1)
    assert bound(full, mantissa) == 1024 * (2 + 1 + mantissa)


def test_the_bound_counts_mantissa_bits_by_block():
    short, long = np.full(4096, 1 << 22, np.uint32), np.full(100, 1, np.uint32)
    assert bound(np.concatenate([short, long]), 23) == 4096 * (1 + 1) + 100 * (1 + 23)


def test_rounds_call_each_in_turn_and_drop_the_first():
    calls = []

    def runner(name):
        def run():
            calls.append(name)
            return float(len(calls))

        return run

    found = run_in_turns({"a": runner("a"), "b": runner("b")}, budget=0, least=3)
    assert calls == ["a", "b"] * 4
    assert found == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}
    assert ratios(found["a"], found["b"]) == [3 / 4, 5 / 6, 7 / 8]


def test_a_budget_of_time_limits_the_rounds():
    found = run_in_turns({"a": lambda: 1.0}, budget=1e9, least=2, most=6)
    assert len(found["a"]) == 6


def test_a_reason_fits_a_table_and_names_no_folder():
    assert reason(ValueError("load of /some/where/model.onnx failed\nmore")) == "load of model.onnx failed"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 500))) == 160
