# What bench/gpu works out without a GPU: document lengths, tiles of long masks (where PyTorch is installed), flex_attention's
# block masks, the tables, and what is read from Nsight Compute.
import importlib.util
import unittest

import attention
import counters
import sparse

TENSOR = counters.COLUMNS["tensor %"][0]
WAIT, GMMA = counters.STALL.format("wait"), counters.STALL.format("gmma")
# As ncu prints it: its own lines and the program's around a table in CSV, whose second line holds units.
ONE_LINE_A_LAUNCH = f'''==PROF== Connected to process 7
"quoted" line of a program
==PROF== Disconnected from process 7
"ID","Process ID","Kernel Name","{counters.DURATION}","{TENSOR}","{WAIT}","{GMMA}"
"","","","ns","%","inst","inst"
"0","7","attention_forward","1,623,000","85.4","3","1"
"1","7","attention_backward_kv","5368000","n/a","0","0"
'''
ONE_LINE_A_METRIC = f'''"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","attention_forward","{counters.DURATION}","us","1,623"
"0","attention_forward","{TENSOR}","%","85.4"
'''


class Documents(unittest.TestCase):
    def test_lengths_are_uneven_and_always_the_same(self):
        lengths = sparse.uneven_lengths(131072, 1000)
        self.assertEqual((len(lengths), sum(lengths)), (1000, 131072))
        self.assertGreaterEqual(min(lengths), 1)
        self.assertGreater(max(lengths), 8 * sorted(lengths)[500])
        self.assertEqual(lengths, sparse.uneven_lengths(131072, 1000))
        self.assertEqual(sparse.uneven_lengths(5, 5), [1] * 5)
        self.assertEqual(sparse.uneven_lengths(16384, 1), [16384])

    def test_line_of_the_table(self):
        row = {"work": "2 documents", "density": 0.5, "visited": 0.51, "times": [4.0, 2.0, 9.0, 6.0], "tflops": [300, 600, 350, 500],
               "difference": [3e-3] * 4}
        line = sparse.printed(row, [4.0, 3.2, 10.0, 10.0])
        self.assertIn("| 0.5000 | 0.5100 | 4.000 (300) | 2.000 (600) | 2.00 | 2.00 1.25 | 9.000 (350) | 6.000 (500) | 1.50 | 1.80 1.20 |", line)
        self.assertEqual(line.count("|"), sparse.HEADER.splitlines()[0].count("|"))


@unittest.skipUnless(importlib.util.find_spec("torch"), "no PyTorch")
class Tiles(unittest.TestCase):
    def setUp(self):
        import torch
        self.torch = torch
        self.x = {"doc": sparse.document_of(torch, sparse.uneven_lengths(1000, 7, seed=3), "cpu")}
        self.position = torch.arange(1000)

    def test_pairs_of_tiles_are_those_of_the_dense_mask(self):
        for program in ("documents", "doc_causal"):
            mask = sparse.StripMask(self.torch, program, self.x, 1000)
            dense = attention.SEMANTICS[program][0](0, 0, self.position[:, None], self.position[None], self.x)
            for strips, pairs, rows, columns in ((mask, dense, 128, 96), (mask.transpose(1, 2), dense.T, 64, 128)):
                counts = strips.pairs_in_tiles(rows, columns)
                expected = [[int(pairs[r: r + rows, c: c + columns].sum()) for c in range(0, 1000, columns)] for r in range(0, 1000, rows)]
                self.assertEqual(counts.tolist(), expected)

    def test_block_mask_is_that_of_create_block_mask(self):
        from torch.nn.attention.flex_attention import create_block_mask
        for program in ("documents", "doc_causal"):
            mask_mod = sparse.mask_mod_of(program, self.x)
            ours = sparse.block_mask(self.torch, sparse.StripMask(self.torch, program, self.x, 1000), mask_mod)
            theirs = create_block_mask(mask_mod, None, None, 1000, 1000, device="cpu")
            self.assertEqual(ours.seq_lengths, theirs.seq_lengths)
            for kind in ("", "full_"):
                for side in ("kv", "q"):
                    counts = [getattr(m, f"{kind}{side}_num_blocks") for m in (ours, theirs)]
                    self.assertEqual(counts[0].tolist(), counts[1].tolist())
                    listed = [getattr(m, f"{kind}{side}_indices")[0, 0] for m in (ours, theirs)]
                    for row, count in enumerate(counts[0][0, 0].tolist()):
                        self.assertEqual(listed[0][row, :count].tolist(), listed[1][row, :count].tolist())


class Counters(unittest.TestCase):
    def test_table_of_launches(self):
        launches = counters.launches_of(ONE_LINE_A_LAUNCH)
        lines = counters.table(launches, ["dense forward", "dense backward"])
        self.assertRegex(lines[2], r"^\| dense forward \| 1\.623 \| 85 \| - .*\| wait 75 %, gmma 25 %")
        self.assertRegex(lines[3], r"^\| dense backward \| 5\.368 \| - \|.*\| - \|$")
        self.assertEqual({line.count("|") for line in lines}, {len(counters.COLUMNS) + 4})

    def test_kernels_name_themselves_where_launches_are_missing(self):
        lines = counters.table(counters.launches_of(ONE_LINE_A_METRIC), ["dense forward", "dense backward"])
        self.assertRegex(lines[2], r"^\| attention_forward \| 1\.623 \| 85 \|")

    def test_output_without_launches(self):
        self.assertEqual(counters.launches_of("==ERROR== ERR_NVGPUCTRPERM - no permission\n"), [])

    def test_metrics_that_ncu_does_not_list_are_left_out(self):
        listing = f"Device H100\n----\nMetric Name   Metric Type\n{TENSOR.split('.')[0]}   Counter\ngpu__time_duration  Counter\n"
        known, unknown = counters.split_known([counters.DURATION, TENSOR, WAIT], listing)
        self.assertEqual((known, unknown), ([counters.DURATION, TENSOR], [WAIT]))
        self.assertEqual(counters.split_known([WAIT], ""), ([WAIT], []))


if __name__ == "__main__":
    unittest.main()
