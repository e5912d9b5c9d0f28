"""The program of the tests of ranks: packed documents per batch row, a bias with a gradient, sinks with one."""
PACKED = """
doc: tensor[i32, B, KV_LEN]
slope: tensor[f32, H](grad=True)
sinks: tensor[f32, H](grad=True)


@mask
def packed(b, h, q, kv):
    return q >= kv and doc[b, q] == doc[b, kv]


@score
def biased(s, b, h, q, kv):
    return s + slope[h] * (kv - q)


attention("packed", mask=packed, score=biased, sink=sinks)
"""
