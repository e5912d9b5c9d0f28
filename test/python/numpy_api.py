# The package without PyTorch: programs, bindings, block masks, attention and its gradients over NumPy and DLPack
# arrays, and every message that Python adds to those of the library.
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import cpflex

PACKED = """
doc: tensor[i32, KV_LEN](sorted)
W: param[int] = 64
slope: tensor[f32, H](grad=True)


@mask
def window(b, h, q, kv):
    return doc[q] == doc[kv] and 0 <= q - kv < W


@score
def biased(s, b, h, q, kv):
    return s + slope[h] * (kv - q)


attention("packed", mask=window, score=biased)
"""
LENGTH, HEADS, COLUMNS = 96, 2, 16
DOC = np.repeat(np.arange(4, dtype=np.int32), 24)
SLOPE = np.array([0.1, 0.2], np.float32)


class OnlyDLPack:
    """An array that offers nothing but DLPack, and counts how often it is asked."""

    def __init__(self, array):
        self.array, self.exports = array, 0

    def __dlpack__(self, **keywords):
        self.exports += 1
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def tensors(seed=0, heads=HEADS, length=LENGTH):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((1, heads, length, COLUMNS)).astype(np.float32) for _ in range(4)]


def packed_binding(**keywords):
    return cpflex.compile(PACKED).bind(**({"doc": DOC, "slope": SLOPE, "heads": HEADS} | keywords))


def reference(q, k, v, slope, width):
    """Attention of the program above in double precision: (out, lse)."""
    q, k, v, slope = (x.astype(np.float64) for x in (q, k, v, slope))
    rows, columns = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None, :]
    allowed = (DOC[:, None] == DOC[None, :]) & (rows >= columns) & (rows - columns < width)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(COLUMNS) + slope[None, :, None, None] * (columns - rows)
    scores = np.where(allowed, scores, -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    return np.exp(scores - lse[..., None]) @ v, lse


class Programs(unittest.TestCase):
    def test_tells_what_it_declares(self):
        program = cpflex.compile(PACKED)
        self.assertEqual([entry.name for entry in program.entries], ["packed"])
        self.assertEqual([(capture.name, capture.dtype, capture.dims) for capture in program.captures],
                         [("doc", "i32", ("KV_LEN",)), ("slope", "f32", ("H",))])
        self.assertEqual([(param.name, param.type, param.default) for param in program.params], [("W", "int", 64)])
        self.assertIn("mask.", program.emit("mask-opt"))

    def test_is_read_from_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "packed.cpf"
            path.write_text(PACKED)
            self.assertEqual(cpflex.compile(path).entries[0].name, "packed")
            self.assertEqual(cpflex.compile(str(path)).entries[0].name, "packed")

    def test_takes_constants(self):
        text = "D: const[int] = 2\n\n\n@mask\ndef m(b, h, q, kv):\n    return q - kv < D\n"
        program = cpflex.compile(text, constants={"D": 5})
        self.assertEqual(program.bind(q_len=8).evaluate_mask()[7].sum(), 5)

    def test_shows_errors_with_their_lines(self):
        with self.assertRaises(cpflex.CompileError) as caught:
            cpflex.compile("@mask\ndef m(b, h, q, kv):\n    return q + None\n", path="wrong.cpf")
        self.assertRegex(str(caught.exception), r"wrong\.cpf:3:\d+: error: .*\n    return q \+ None\n +\^")
        self.assertEqual(caught.exception.diagnostics[0]["line"], 3)

    def test_ports_a_function_of_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "mods.py"
            path.write_text("def make(width):\n    def near(b, h, q, kv):\n        return q - kv <= width\n"
                            "    return near\n")
            text, warnings = cpflex.port(path, "near")
        self.assertIn("width: param[int]", text)
        self.assertIn("'width' is taken for an int argument", warnings)


class Bindings(unittest.TestCase):
    def test_knows_sizes_and_arrays(self):
        binding = packed_binding()
        self.assertEqual(binding.sizes, {"batch": 1, "heads": 2, "kv_heads": 2, "q_len": LENGTH, "kv_len": LENGTH})
        self.assertEqual(binding.dim("KV_LEN"), LENGTH)
        np.testing.assert_array_equal(binding.array("doc"), DOC)

    def test_takes_document_lengths(self):
        binding = packed_binding(doc=cpflex.segments(np.arange(0, 97, 24)))
        np.testing.assert_array_equal(binding.array("doc"), DOC)

    def test_takes_dlpack_without_copies(self):
        doc = OnlyDLPack(DOC.copy())
        binding = cpflex.compile(PACKED).bind(doc=doc, slope=SLOPE, heads=HEADS, borrow=True)
        self.assertEqual(doc.exports, 1)
        before = binding.evaluate_mask()
        doc.array[:] = 0
        binding.changed()
        self.assertGreater(binding.evaluate_mask().sum(), before.sum())

    def test_takes_strided_arrays(self):
        wide = np.stack([DOC, DOC + 7], 1)[:, 0]
        self.assertFalse(wide.flags.c_contiguous)
        np.testing.assert_array_equal(packed_binding(doc=wide).evaluate_mask(), packed_binding().evaluate_mask())

    def test_refuses_what_does_not_fit(self):
        for keywords, kind, message in [
                ({"doc": DOC[::-1]}, ValueError, "'doc' is declared sorted"),
                ({"doc": DOC.astype(np.float64)}, TypeError, "'doc' has elements of type float64"),
                ({"doc": "ids"}, TypeError, "'doc' is a 'str'; expected an array"),
                ({"doc": np.zeros((1,) * 5, np.int32)}, ValueError, "'doc' has 5 dimensions; expected at most 4"),
                ({"other": 3}, ValueError, "'other'"),
                ({"W": {}}, TypeError, "'W' is a 'dict'; expected a number or text"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(kind, re.escape(message)):
                packed_binding(**keywords)

    def test_refuses_dlpack_of_elements_it_cannot_read(self):
        with self.assertRaisesRegex((ValueError, NotImplementedError), "'doc': "):
            packed_binding(doc=OnlyDLPack(np.zeros(LENGTH, np.complex64)))


class BlockMasks(unittest.TestCase):
    def test_equals_every_pair_evaluated(self):
        binding = packed_binding(W=20)
        pairs = binding.evaluate_mask()
        mask = binding.block_mask(tile=(8, 16))
        tiles = pairs.reshape(12, 8, 6, 16).sum((1, 3))
        np.testing.assert_array_equal(mask.classes(), np.where(tiles == 128, 1, np.where(tiles > 0, 2, 0)))
        self.assertEqual(mask.count_pairs()["allowed"], pairs.sum())
        self.assertEqual(mask.statistics["empty"], (tiles == 0).sum())

    def test_lists_go_both_ways(self):
        mask = packed_binding().block_mask(tile=16)
        lists = mask.index_lists()
        self.assertEqual(lists["kv_indices"].shape, (1, 2, 6, 6))
        names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
        back = cpflex.BlockMask.from_index_lists(*(lists[name] for name in names), q_len=LENGTH, kv_len=LENGTH,
                                                 tile=(16, 16))
        np.testing.assert_array_equal(back.classes(), mask.classes())

    def test_is_kept_in_a_file(self):
        mask = packed_binding().block_mask(tile=16)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "mask"
            mask.save(path)
            np.testing.assert_array_equal(cpflex.BlockMask.read(path).classes(), mask.classes())
            path.write_bytes(path.read_bytes()[:-7])
            with self.assertRaises(cpflex.DataLossError):
                cpflex.BlockMask.read(path)
            with self.assertRaises(RuntimeError):
                cpflex.BlockMask.read(pathlib.Path(folder) / "absent")

    def test_draws_itself(self):
        mask = cpflex.block_mask(packed_binding(), tile=16)
        self.assertTrue(mask._repr_svg_().lstrip().startswith("<"))
        self.assertIn("</svg>", mask.draw("svg", title="packed"))
        self.assertTrue(mask.draw("png").startswith(b"\x89PNG"))
        self.assertIn("partial", str(mask))
        self.assertIn("96 x 96 in tiles of 16 x 16", repr(mask))

    def test_draws_a_panel_for_each_head_and_lines_between_documents(self):
        program = cpflex.compile("doc: tensor[i32, KV_LEN](sorted)\nwidth: tensor[i32, H]\n@mask\n"
                                 "def m(b, h, q, kv):\n    return doc[q] == doc[kv] and 0 <= q - kv < width[h]\n")
        binding = program.bind(doc=np.repeat([0, 1], 128).astype(np.int32), width=np.array([16, 64], np.int32))
        mask = binding.block_mask(tile=16)
        self.assertIn("b 0, h 1", mask._repr_svg_())
        self.assertNotIn("b 0, h 1", mask.draw("svg"))
        line = '<line class="b"'
        self.assertEqual(mask.draw("svg").count(line), 2)
        self.assertEqual(mask.draw("svg", document_bounds=[]).count(line), 0)
        self.assertEqual(mask.draw("svg", document_bounds=[64, 128]).count(line), 4)
        with self.assertRaisesRegex(ValueError, "'heads' is 'all'; expected 'one' or 'distinct'"):
            mask.draw(heads="all")

    def test_draws_where_masks_differ(self):
        program = cpflex.compile("W: param[int] = 16\n@mask\ndef m(b, h, q, kv):\n    return 0 <= q - kv < W\n")
        narrow, wide = (program.bind(q_len=64, W=width).block_mask(tile=16) for width in (16, 32))
        picture, count = narrow.draw_difference(wide, "svg")
        self.assertEqual(count, 5)
        self.assertIn("</svg>", picture)
        self.assertEqual(narrow.draw_difference(narrow)[1], 0)

    def test_refuses_wrong_tiles(self):
        with self.assertRaises(ValueError):
            packed_binding().block_mask(tile=-1)


class Attention(unittest.TestCase):
    def test_equals_double_precision(self):
        q, k, v, _ = tensors()
        binding = packed_binding(W=20)
        for mask in (None, binding.block_mask(tile=32)):
            out, lse = cpflex.forward(binding, q, k, v, mask=mask)
            expected_out, expected_lse = reference(q, k, v, SLOPE, 20)
            np.testing.assert_allclose(out, expected_out, atol=2e-6)
            np.testing.assert_allclose(lse, expected_lse, atol=2e-6)

    def test_gradients_equal_differences(self):
        q, k, v, d_out = tensors(1)
        binding = packed_binding(W=20)
        out, lse = binding.forward(q, k, v)
        gradients = cpflex.backward(binding, q, k, v, out, lse, d_out)
        self.assertEqual(set(gradients), {"q", "k", "v", "slope"})
        generator = np.random.default_rng(2)
        for name in gradients:
            values = {"q": q, "k": k, "v": v, "slope": SLOPE}
            direction = generator.standard_normal(values[name].shape)
            losses = []
            for sign in (1, -1):
                moved = values | {name: values[name] + sign * 1e-4 * direction}
                losses.append((reference(*moved.values(), 20)[0] * d_out).sum())
            expected = (losses[0] - losses[1]) / 2e-4
            self.assertAlmostEqual((gradients[name] * direction).sum() / expected, 1, delta=1e-4)

    def test_takes_dlpack_and_strided_tensors(self):
        q, k, v, _ = tensors()
        binding = packed_binding()
        expected, _ = binding.forward(q, k, v)
        strided = np.ascontiguousarray(q.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
        self.assertFalse(strided.flags.c_contiguous)
        out, _ = binding.forward(OnlyDLPack(strided), OnlyDLPack(k), v)
        np.testing.assert_array_equal(out, expected)

    def test_writes_into_the_callers_array(self):
        q, k, v, _ = tensors()
        out = np.zeros_like(q)
        given, lse = packed_binding().forward(q, k, v, out=out, lse=False)
        self.assertIs(given, out)
        self.assertIsNone(lse)
        self.assertGreater(np.abs(out).max(), 0)

    def test_takes_bfloat16_as_bits(self):
        q, k, v, _ = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in tensors())
        out, _ = packed_binding(W=20).forward(q, k, v, dtype="bf16")
        floats = [(x.astype(np.uint32) << 16).view(np.float32) for x in (q, k, v, out)]
        np.testing.assert_allclose(floats[3], reference(*floats[:3], SLOPE, 20)[0], atol=0.03)

    def test_of_no_queries_is_empty(self):
        program = cpflex.compile("attention(\"all\")\n")
        q = np.zeros((1, 1, 0, 16), np.float32)
        k = np.zeros((1, 1, 4, 16), np.float32)
        out, lse = program.bind(q_len=0, kv_len=4).forward(q, k, k)
        self.assertEqual((out.shape, lse.shape), ((1, 1, 0, 16), (1, 1, 0)))

    def test_refuses_wrong_tensors(self):
        q, k, v, _ = tensors()
        binding = packed_binding()
        for wrong, kind, message in [
                ((q[0], k, v), ValueError, "'q' has 3 dimensions; expected 4"),
                ((q[:, :, :50], k, v), ValueError, "'q' has shape"),
                ((q, k.astype(np.float16), v), ValueError, "'k'"),
                ((q, None, v), ValueError, "'k'"),
                ((q.astype(np.float64), k, v), TypeError, "'q' has elements of type float64"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(kind, re.escape(message)):
                binding.forward(*wrong)


class PythonFunctions(unittest.TestCase):
    def test_closures_are_bound(self):
        ids, width = DOC, 20

        def near(b, h, q, kv):
            return (ids[q] == ids[kv]) & (q >= kv) & (q - kv < width)

        def biased(score, b, h, q, kv):
            return score + np.where(h == 0, 0.1, 0.2) * (kv - q)

        q, k, v, _ = tensors()
        out, _ = cpflex.compile((near, biased)).bind(heads=HEADS, q_len=LENGTH).forward(q, k, v)
        np.testing.assert_allclose(out, reference(q, k, v, SLOPE, 20)[0], atol=2e-6)

    def test_scalars_do_not_enter_the_text(self):
        def window(width):
            return lambda b, h, q, kv: (q >= kv) & (q - kv < width)

        texts = {cpflex.compile(window(width))._origin.text for width in (3, 4)}
        self.assertEqual(len(texts), 1)
        for width in (3, 4):
            self.assertEqual(cpflex.compile(window(width)).bind(q_len=9).evaluate_mask()[8].sum(), width)

    def test_a_scalar_that_python_asks_for_is_constant(self):
        steps = 3

        def stairs(b, h, q, kv):
            allowed = q < 0
            for step in range(steps):
                allowed = allowed | (kv == q - step)
            return allowed

        program = cpflex.compile(stairs)
        self.assertIn("steps: const[int] = 3", program._origin.text)
        self.assertEqual(program.bind(q_len=9).evaluate_mask()[8].sum(), 3)

    def test_what_has_no_translation_is_shown_at_its_line(self):
        def conditional(b, h, q, kv):
            if q > kv:
                return True
            return False

        cases = [
            (conditional, "a condition of Python needs a value that depends on batch, head, query or key"),
            (lambda b, h, q, kv: int(q) > kv, "int() needs a value"),
            (lambda b, h, q, kv: float(q) > kv, "float() needs a value"),
            (lambda b, h, q, kv: [1, 2][q] > kv, "an index of Python needs a value"),
            (lambda b, h, q, kv: q.cumsum() > kv, "'cumsum' has no translation"),
            (lambda b, h, q, kv: sum(q) > kv, "a value of one pair cannot be iterated over"),
            (lambda b, h, q, kv: q[0] > kv, "a value of one pair has no elements"),
            (lambda b, h, q, kv: np.cumsum(q) > kv, "'cumsum' has no translation"),
            (lambda b, h, q, kv: DOC[q, kv] > kv, "'DOC' has 1 dimension, 2 indices given"),
            (lambda b, h, q, kv: q > SLOPE, "'SLOPE' has 1 dimension, 0 indices given"),
            (lambda b, h, q, kv: DOC[q * 0.5] > kv, "an index of 'DOC' is a float; expected an int"),
            (lambda b, h, q, kv: DOC[q:] > kv, "an index of 'DOC' is slice("),
            (lambda b, h, q, kv: DOUBLES[q] > kv, "a captured array has elements of type float64"),
            (lambda b, h, q, kv: q > "x", "a 'str' cannot take part in an expression"),
            (lambda b, h, q, kv: q > float("nan"), "nan has no translation"),
            (lambda b, h, q, kv: (q * 0.5) << kv, "'<<' works on ints"),
            (lambda b, h, q, kv: (q * 0.5) & kv, "'&' works on bools and ints"),
            (lambda b, h, q, kv: ~(q * 0.5), "'~' works on bools and ints"),
            (lambda b, h, q, kv: q * 0.5, "gives a float; expected a bool"),
            (lambda b, h, q, kv: q // 0 > kv, "division by the constant 0"),
            (lambda b, h, q, kv: np.add(q, kv, out=q) > 0, "'out' has no translation"),
            (lambda b, h, q, kv: np.where(q > kv) > 0, "'where' with these arguments has no translation"),
        ]
        for function, message in cases:
            with self.subTest(message), self.assertRaises(cpflex.TranslationError) as caught:
                cpflex.compile(function)
            self.assertIn(message, str(caught.exception))
            self.assertRegex(str(caught.exception), r"numpy_api\.py:\d+:(\d+:)? error: ")

    def test_takes_4_or_5_parameters(self):
        def three(b, q, kv):
            return q > kv

        with self.assertRaisesRegex(ValueError, "'three' has 3 parameters; a mask has 4"):
            cpflex.compile(three)


DOUBLES = np.zeros(4)


class Library(unittest.TestCase):
    def run_python(self, code, **environment):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=os.environ | environment)

    def test_a_missing_library_is_one_sentence(self):
        done = self.run_python("import cpflex; cpflex.version()", CPFLEX_LIBRARY="/nowhere/libcpflex.so")
        self.assertIn("libcpflex.so was not found; set CPFLEX_LIBRARY to it", done.stderr)
        self.assertIn("/nowhere/libcpflex.so: no such file", done.stderr)

    def test_another_file_is_refused(self):
        done = self.run_python("import cpflex; cpflex.version()", CPFLEX_LIBRARY=__file__)
        self.assertIn("libcpflex.so was not found", done.stderr)

    def test_pytorch_is_not_imported(self):
        done = self.run_python("import cpflex, sys; cpflex.version(); print('torch' in sys.modules)")
        self.assertEqual(done.stdout.strip(), "False", done.stderr)


if __name__ == "__main__":
    unittest.main()
