# Attention of several ranks over NumPy arrays: layouts as data, plans as numbers and pictures, both passes against one
# device, transports written in Python, and every message that Python adds.
import collections
import ctypes
import threading
import unittest

import numpy as np

import cpflex
from cpflex import context_parallel as cp
from packed_program import PACKED

BATCH, HEADS, KV_HEADS, LENGTH, COLUMNS = 2, 4, 2, 333, 16


def packed_binding():
    documents = np.stack([np.arange(LENGTH) * 3 // LENGTH, np.arange(LENGTH) * 5 // LENGTH]).astype(np.int32)
    return cpflex.compile(PACKED).bind(doc=documents, slope=np.array([0.1, 0.05, 0.02, 0.01], np.float32),
                                       sinks=np.array([-1, 0, 1, 0.5], np.float32), heads=HEADS, kv_heads=KV_HEADS)


def tensors():
    generator = np.random.default_rng(0)
    return [generator.standard_normal((BATCH, heads, LENGTH, COLUMNS)).astype(np.float32)
            for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


class Post:
    """Mailboxes of ranks that are threads."""

    def __init__(self):
        self.boxes, self.arrived = collections.defaultdict(collections.deque), threading.Condition()


class Courier:
    """A transport in Python over a Post. `failure` is raised at the first wait."""

    def __init__(self, post, rank, world_size, failure=None):
        self.post, self.rank, self.world_size, self.failure = post, rank, world_size, failure
        self.awaited = {}

    def start(self, ticket, messages):
        self.awaited[ticket] = [message for message in messages if not message[1]]
        with self.post.arrived:
            for peer, is_send, address, size in messages:
                if is_send:
                    self.post.boxes[self.rank, peer].append(ctypes.string_at(address, size))
            self.post.arrived.notify_all()

    def wait(self, ticket, seconds):
        for peer, _, address, size in self.awaited.pop(ticket):
            if self.failure:
                raise self.failure
            with self.post.arrived:
                box = self.post.boxes[peer, self.rank]
                if not self.post.arrived.wait_for(lambda: box, seconds):
                    raise TimeoutError(f"rank {peer} is silent")
                ctypes.memmove(address, box.popleft(), size)


class Ranks(unittest.TestCase):
    def test_both_passes_agree_with_one_device(self):
        binding = packed_binding()
        q, k, v, d_out = tensors()
        out, lse = binding.forward(q, k, v, threads=1)
        expected = binding.backward(q, k, v, out, lse, d_out, threads=1)
        own = cp.Layout.of_positions([np.arange(100, 333), np.arange(100)])
        for world_size, layout, rotation in [(1, "auto", "auto"), (2, "head-tail", "ring"), (3, "solved", "selective"),
                                             (4, "per-document", "all-gather"), (5, "ptrr", "auto"), (2, own, "ulysses")]:
            with self.subTest(layout=layout, rotation=rotation):
                plan = cp.Plan(binding, world_size, head_dim=COLUMNS, layout=layout, rotation=rotation)
                ranks = cp.Ranks(plan)
                actual_out, actual_lse = ranks.forward(q, k, v)
                close(actual_out, out)
                close(actual_lse, lse)
                actual = ranks.backward(q, k, v, actual_out, actual_lse, d_out)
                self.assertEqual(sorted(actual), sorted(expected))
                for name, gradient in expected.items():
                    close(actual[name], gradient)
                for rank in ranks.ranks:
                    planned = sum(plan.rank_numbers(rank.index, backward)["bytes_received"] for backward in (0, 1))
                    counted = sum(rank.traffic(purpose)["bytes_received"]
                                  for purpose in ("kv", "q", "out", "q-gradient", "dq", "dkv"))
                    self.assertEqual(counted, planned)
                self.assertIn('"forward"', ranks.trace())

    def test_ascending_keys_give_the_bits_of_one_device(self):
        binding = packed_binding()
        q, k, v, _ = tensors()
        out, lse = binding.forward(q, k, v, threads=1)
        ranks = cp.Ranks(cp.Plan(binding, 3, head_dim=COLUMNS, ascending_keys=True, backward=False))
        actual_out, actual_lse = ranks.forward(q, k, v)
        np.testing.assert_array_equal(actual_out, out)
        np.testing.assert_array_equal(actual_lse, lse)

    def test_python_functions_share_a_call_too(self):
        window = np.int64(40)
        program = cpflex.compile(lambda b, h, q, kv: (q >= kv) & (q - kv < window))
        binding = program.bind(heads=2, q_len=200)
        generator = np.random.default_rng(1)
        q, k, v = (generator.standard_normal((1, 2, 200, COLUMNS)).astype(np.float32) for _ in range(3))
        ranks = cp.Ranks(cp.Plan(binding, 2, head_dim=COLUMNS, layout="contiguous", backward=False))
        close(ranks.forward(q, k, v)[0], binding.forward(q, k, v, threads=1)[0])

    def test_a_transport_in_python_carries_ranks(self):
        binding = packed_binding()
        q, k, v, _ = tensors()
        plan, post, parts = cp.Plan(binding, 2, head_dim=COLUMNS), Post(), [None, None]

        def run(index):
            rank = cp.Rank(plan, cp.Communicator.over(Courier(post, index, 2)), deadline_seconds=20)
            parts[index] = rank.forward(*[plan.layout.shard(array, index, 2) for array in (q, k, v)])[0]

        running = [threading.Thread(target=run, args=(index,)) for index in range(2)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        close(plan.layout.unshard(parts, 2), binding.forward(q, k, v, threads=1)[0])

        silence = TimeoutError("rank 1 is silent")
        alone = cp.Communicator.over(Courier(Post(), 0, 2, silence))
        causal = cpflex.compile("@mask\ndef every(b, h, q, kv):\n    return q >= 0\n").bind(heads=2, q_len=8)
        plan = cp.Plan(causal, 2, head_dim=COLUMNS, backward=False)
        q = np.zeros((1, 2, 4, COLUMNS), np.float32)
        with self.assertRaisesRegex(TimeoutError, "failed at rank 0 in step 0 .*: rank 1 is silent") as caught:
            cp.Rank(plan, alone).forward(q, q, q)
        self.assertIs(caught.exception.__cause__, silence)
        alone.abort("no reason")
        with self.assertRaises(KeyboardInterrupt):
            cp.Rank(plan, cp.Communicator.over(Courier(Post(), 0, 2, KeyboardInterrupt()))).forward(q, q, q)

    def test_exact_needs_send_only_keys_that_are_attended_to(self):
        width = np.int64(40)
        binding = cpflex.compile(lambda b, h, q, kv: (q >= kv) & (q - kv < width)).bind(q_len=512)
        received = [cp.Plan(binding, 2, head_dim=COLUMNS, layout="contiguous", backward=False, rotation="selective",
                            exact_needs=exact).rank_numbers(1)["bytes_received"] // (2 * COLUMNS * 4) for exact in (0, 1)]
        self.assertEqual(received, [128, 39])

    def test_plans_are_told_and_drawn(self):
        plan = cp.Plan(packed_binding(), 4, head_dim=COLUMNS, layout="solved", rotation="selective")
        self.assertEqual(plan.layout.kind, "solved")
        numbers = plan.numbers()
        self.assertEqual((numbers["rotation"], numbers["world_size"]), ("selective", 4))
        self.assertGreaterEqual(numbers["largest_work"], numbers["mean_work"])
        self.assertTrue(plan._repr_svg_().startswith("<svg"))
        self.assertIn("cp.schedule backward", plan.print("text", backward=True))
        self.assertIn("rank", str(plan))

    def test_bad_use(self):
        binding = packed_binding()
        plan = cp.Plan(binding, 2, head_dim=COLUMNS)
        two = cp.threads(2)
        q, k, v, _ = tensors()
        for kind, message, call in [
                (ValueError, "dtype is 'f64'; expected f32, bf16 or f16", lambda: cp.Plan(binding, 2, head_dim=8, dtype="f64")),
                (ValueError, "'layout' is 'zigzag'", lambda: cp.Plan(binding, 2, head_dim=8, layout="zigzag")),
                (ValueError, "the plan is for 2 ranks and the communicator has 3", lambda: cp.Rank(plan, cp.threads(3)[0])),
                (ValueError, "'q' has shape 2x4x333x16; expected 2x4x167x16", lambda: cp.Rank(plan, two[0]).forward(q, k, v)),
                (ValueError, "1 parts are given; expected 2", lambda: plan.layout.unshard([q], 2)),
                (ValueError, "axis is 4; expected one of 4", lambda: plan.layout.shard(q, 0, 4)),
                (RuntimeError, "the MPI plugin was not found", lambda: cp.Communicator.mpi("/nowhere.so")),
                (ValueError, "a group of 0 threads; expected 1 to 4096", lambda: cp.cuda_threads(0)),
                (ValueError, "'gpus' is empty; expected the index of at least one GPU", lambda: cp.cuda_threads(2, [])),
                (TypeError, "group_id is 'name'; expected the 128 bytes of nccl_id()",
                 lambda: cp.Communicator.nccl("name", 0, 2)),
                (ValueError, "rank 2 of 2; expected a rank in [0, 2)", lambda: cp.Communicator.nccl(bytes(128), 2, 2)),
                (ValueError, "'nccl_comm' is null; expected a value", lambda: cp.Communicator.over_nccl(None)),
        ]:
            with self.subTest(message), self.assertRaises(kind) as caught:
                call()
            self.assertIn(message, str(caught.exception))


class Layouts(unittest.TestCase):
    def test_rules_and_their_permutations(self):
        for layout, expected in [
                (cp.Layout.contiguous(5, 2), [0, 1, 2, 3, 4]),
                (cp.Layout.head_tail(16, 2), [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]),
                (cp.Layout.striped(5, 2), [0, 2, 4, 1, 3]),
                (cp.Layout.per_document([4, 12], 2), [0, 3, 4, 5, 6, 13, 14, 15, 1, 2, 7, 8, 9, 10, 11, 12]),
        ]:
            self.assertEqual(layout.permutation.tolist(), expected)
            np.testing.assert_array_equal(layout.permutation[layout.inverse_permutation], np.arange(layout.length))

    def test_shards_come_back_whole(self):
        labels = np.arange(32).reshape(2, 16)
        layout = cp.Layout.head_tail(16, 4)
        self.assertEqual(layout.shard(labels, 1, 1).tolist(), [[2, 3, 12, 13], [18, 19, 28, 29]])
        self.assertEqual(layout.positions(1).tolist(), [2, 3, 12, 13])
        np.testing.assert_array_equal(layout.unshard([layout.shard(labels, rank, -1) for rank in range(4)], -1), labels)
        rows = cp.Layout.of_positions([np.array([[0, 1], [2, 3]]), np.array([[2, 3], [0, 1]])])
        self.assertEqual(rows.shard(np.arange(8).reshape(2, 4), 0, 1).tolist(), [[0, 1], [6, 7]])


if __name__ == "__main__":
    unittest.main()
