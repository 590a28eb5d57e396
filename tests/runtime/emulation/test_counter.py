"""The classes of instructions, tested on the plugin itself: its source is compiled with a stand-in for qemu."""

import shutil
import subprocess
from pathlib import Path

import pytest

import qcompiler

SOURCE = Path(qcompiler.__file__).parent / "runtime" / "emulation" / "counter.c"
HARNESS = """
#include <stdio.h>
#include <stdlib.h>
#include "counter.c"
static uint32_t words[64];
static size_t count;
static translated on_block;
static system_call on_call;
struct qemu_plugin_insn { int unused; };
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translated f) { (void)id; on_block = f; }
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, system_call f) { (void)id; on_call = f; }
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *b, int o, void *counter, uint64_t n)
{ (void)b; if (o == 0) *(uint64_t *)counter += n; }
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *b) { (void)b; return count; }
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *b, size_t i)
{ (void)b; return (struct qemu_plugin_insn *)&words[i]; }
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *i) { return i; }
int main(int argc, char **argv)
{
    if (qemu_plugin_install(1, NULL, 1, &argv[1])) return 1;
    for (int i = 2; i < argc; i++) words[count++] = (uint32_t)strtoul(argv[i], NULL, 16);
    on_block(1, NULL);
    on_call(1, 0, 113, 0, 0, 0, 0, 0, 0, 0, 0);
    on_call(1, 1, 173, 0, 0, 0, 0, 0, 0, 0, 0);
    on_call(1, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0);
    on_call(1, 0, 173, 0, 0, 0, 0, 0, 0, 0, 0);
    return 0;
}
"""
CLASSES = ("dot", "matrix", "widening", "fmla")
INSTRUCTIONS = {
    "sdot v0.4s, v1.16b, v2.16b": ("4e829420", "dot"),
    "udot v0.4s, v1.16b, v2.16b": ("6e829420", "dot"),
    "udot v0.4s, v1.16b, v2.4b[0]": ("6f82e020", "dot"),
    "usdot v0.4s, v1.16b, v2.16b": ("4e829c20", "dot"),
    "smmla v0.4s, v1.16b, v2.16b": ("4e82a420", "matrix"),
    "ummla v0.4s, v1.16b, v2.16b": ("6e82a420", "matrix"),
    "usmmla v0.4s, v1.16b, v2.16b": ("4e82ac20", "matrix"),
    "smull v0.8h, v1.8b, v2.8b": ("0e22c020", "widening"),
    "umlal2 v0.4s, v1.8h, v2.8h": ("6e628020", "widening"),
    "smlsl v0.4s, v1.4h, v2.4h": ("0e62a020", "widening"),
    "smlal v0.4s, v1.4h, v2.h[0]": ("0f422020", "widening"),
    "umull v0.4s, v1.4h, v2.h[0]": ("2f42a020", "widening"),
    "fmla v0.4s, v1.4s, v2.4s": ("4e22cc20", "fmla"),
    "fmls v0.4s, v1.4s, v2.4s": ("4ea2cc20", "fmla"),
    "fmla v0.4s, v1.4s, v2.s[0]": ("4f821020", "fmla"),
    "fmla v0.8h, v1.8h, v2.8h": ("4e420c20", "fmla"),
    "add x0, x1, x2": ("8b020020", ""),
    "add v0.4s, v1.4s, v2.4s": ("4ea28420", ""),
    "fadd v0.4s, v1.4s, v2.4s": ("4e22d420", ""),
    "fmul v0.4s, v1.4s, v2.4s": ("6e22dc20", ""),
    "sadalp v0.4s, v1.8h": ("4e606820", ""),
    "mla v0.4s, v1.4s, v2.4s": ("4ea29420", ""),
    "pmull v0.8h, v1.8b, v2.8b": ("0e22e020", ""),
    "ldr q0, [x0]": ("3dc00000", ""),
    "movi v0.4s, #0": ("4f000400", ""),
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """Give the plugin as a program: arguments are out=FILE and words of machine code."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc; the plugin is compiled with it")
    folder = tmp_path_factory.mktemp("counter")
    (folder / "harness.c").write_text(HARNESS)
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-I", str(SOURCE.parent), "-o", "counter", "harness.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "counter"


def count(plugin, tmp_path, words):
    output = tmp_path / "counts"
    subprocess.run([plugin, f"out={output}", *words], check=True)
    return output.read_text().splitlines()


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_an_instruction_has_its_class(text, plugin, tmp_path):
    word, expected = INSTRUCTIONS[text]
    _, mark = count(plugin, tmp_path, [word])
    assert mark.split() == ["m", "1", *("1" if name == expected else "0" for name in CLASSES)]


def test_a_block_adds_up_and_only_two_system_calls_are_written(plugin, tmp_path):
    words = [word for word, _ in INSTRUCTIONS.values()]
    lines = count(plugin, tmp_path, words)
    assert lines == [f"c {len(words)} 4 3 5 4", f"m {len(words)} 4 3 5 4"]


def test_a_file_that_cannot_be_written_is_refused(plugin, tmp_path):
    done = subprocess.run([plugin, f"out={tmp_path}/absent/counts"], check=False)
    assert done.returncode == 1
