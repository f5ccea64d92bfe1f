"""Which instructions the kernels are compiled for, on processors of all kinds."""

from pathlib import Path

import pytest

from loragate.server.engine.cpu import native_library
from loragate.server.engine.cpu.isa import AVX2, AVX512, AVX512_BF16, UnsupportedProcessor, usable

HASWELL = AVX2.needs | {"sse4_2"}
SKYLAKE_X = AVX512.needs | {"avx512_vnni"}
ZEN_4 = AVX512_BF16.needs


@pytest.mark.parametrize(
    ("machine", "flags", "names"),
    [
        ("x86_64", ZEN_4, ["avx512_bf16", "avx512", "avx2", "portable"]),
        ("x86_64", SKYLAKE_X, ["avx512", "avx2", "portable"]),
        ("x86_64", HASWELL, ["avx2", "portable"]),
        ("x86_64", (), ["portable"]),  # a system that tells nothing
        ("aarch64", ("asimd",), ["neon"]),
        ("riscv64", (), ["portable"]),
    ],
)
def test_the_best_that_the_processor_has_comes_first(
    machine: str, flags: frozenset[str], names: list[str]
) -> None:
    assert [isa.name for isa in usable(flags=flags, machine=machine)] == names


def test_products_of_bytes_are_used_where_the_processor_has_them() -> None:
    with_them = usable(flags=SKYLAKE_X, machine="x86_64")[0]
    without = usable(flags=AVX512.needs, machine="x86_64")[0]
    assert set(with_them.compiler_flags) - set(without.compiler_flags) == {"-mavx512vnni"}


def test_what_is_wanted_by_name_comes_first() -> None:
    found = usable("avx2", flags=ZEN_4, machine="x86_64")
    assert [isa.name for isa in found] == ["avx2", "portable"]


def test_a_processor_without_fma_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(UnsupportedProcessor, match=r"lacks avx2, bmi1, bmi2, f16c, fma, without"):
        usable(flags=("sse4_2", "avx"), machine="x86_64")


def test_what_the_processor_has_not_got_is_refused_with_what_it_has() -> None:
    with pytest.raises(UnsupportedProcessor, match=r"'avx512', but this processor has avx2, port"):
        usable("avx512", flags=HASWELL, machine="x86_64")


def test_a_compiler_that_is_too_old_gets_the_next_lower_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "old-cc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-mavx512f*|*-mavx2*) echo "unknown option" >&2; exit 1;; esac\n'
        'exec gcc "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    built = native_library.build(tmp_path / "cache")
    assert built.isa in usable()
    assert not built.isa.compiler_flags
    assert native_library.load(built.library).linear_columns() > 0


def test_libraries_of_two_kinds_lie_side_by_side(tmp_path: Path) -> None:
    best, *_, least = usable()
    built = [native_library.build(tmp_path, isa.name) for isa in (best, least)]
    assert [each.isa for each in built] == [best, least]
    assert all(each.library.exists() for each in built)
