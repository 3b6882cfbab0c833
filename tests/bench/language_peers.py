"""Decoders of other projects with random weights in the shape of LLaMA 1.1B, as the other side of
serving_vs_peers.py. Runs in the environment of requirements.txt; the benchmark starts it.

    language_peers.py openvino:int8|openvino:int4|openvino:bf16|transformers:bf16 THREADS

Standard input has a line for each measurement: `prompt TOKENS` or `decode SEQUENCES STEPS`; the answer is
tokens a second."""
import sys
import time

import numpy as np

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY, THETA = 22, 2048, 5632, 32, 4, 64, 32000, 10000.0
CONTEXT = 16  # of each sequence, before its steps


def random_ids(batch, tokens):
    return np.random.default_rng(tokens).integers(3, VOCABULARY, (batch, tokens)).astype(np.int64)


class OpenVino:
    """The stateful graph that optimum-intel exports: keys and values as state, weights as NNCF compresses them (8 bits
    asymmetric for each row, 4 bits symmetric in groups of 32 with an 8-bit head), everything else by default."""

    def __init__(self, kind, threads):
        import openvino as ov
        self.ov, self.random, self.kept = ov, np.random.default_rng(0), []
        compiled = ov.Core().compile_model(self.graph(kind), "CPU", {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False})
        attentions = [node for node in compiled.get_runtime_model().get_ops()
                      if node.get_rt_info()["layerType"].astype(str) == "ScaledDotProductAttention"]
        # Those that were put together with their keys and values read these too.
        assert len(attentions) == LAYERS and all(node.get_input_size() > 5 for node in attentions), "attention was not fused"
        self.about = {"openvino": ov.__version__.split("-")[0], "weights": kind,
                      "precision": str(compiled.get_property("INFERENCE_PRECISION_HINT")),
                      "kv": str(compiled.get_property("KV_CACHE_PRECISION"))}
        self.request = compiled.create_infer_request()

    def weight(self, kind, out, into):
        """[out, into] as float32, out of what is stored."""
        from openvino import opset13 as op
        ov = self.ov
        if kind == "bf16":
            data = (self.random.standard_normal((out, into), dtype=np.float32) * 0.02).astype(np.float16)
            return op.convert(op.constant(data), "f32")
        half = lambda values: op.constant(np.asarray(values, np.float16))
        if kind == "int8":
            data = op.constant(self.random.integers(0, 256, (out, into), dtype=np.uint8))
            zero = op.convert(op.constant(np.full((out, 1), 128, np.uint8)), "f16")
            scaled = op.multiply(op.subtract(op.convert(data, "f16"), zero), half(np.full((out, 1), 1e-4)))
            return op.convert(scaled, "f32")
        groups = into // 32
        packed = self.random.integers(0, 256, out * into // 2, dtype=np.uint8)
        self.kept.append(packed)  # constants of 4 bits only refer to it
        data = op.constant(ov.Tensor(packed, ov.Shape([out, groups, 32]), ov.Type.i4))
        scaled = op.multiply(op.convert(data, "f16"), half(np.full((out, groups, 1), 1e-3)))
        return op.convert(op.reshape(scaled, np.array([out, into], np.int64), False), "f32")

    def graph(self, kind):
        from openvino import opset13 as op
        ov = self.ov
        integers = lambda *values: op.constant(np.array(values, np.int64))
        floats = lambda *values: op.constant(np.array(values, np.float32))
        ids = op.parameter([-1, -1], np.int64, name="input_ids")
        mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        positions = op.parameter([-1, -1], np.int64, name="position_ids")
        beams = op.parameter([-1], np.int32, name="beam_idx")
        for node, name in ((ids, "input_ids"), (mask, "attention_mask"), (positions, "position_ids"), (beams, "beam_idx")):
            node.output(0).get_tensor().set_names({name})

        def norm(x):
            mean = op.reduce_mean(op.power(x, floats(2.0)), integers(-1), True)
            root = op.sqrt(op.add(mean, floats(1e-5)))
            return op.multiply(floats(*np.ones(WIDTH, np.float32)), op.multiply(x, op.divide(floats(1.0), root)))

        linear = lambda x, out, into, as_kind=kind: op.matmul(x, self.weight(as_kind, out, into), False, True)
        batch = op.gather(op.shape_of(ids), integers(0), op.constant(np.array(0)))
        table = (self.random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32) * 0.02).astype(np.float16)
        x = op.gather(op.convert(op.constant(table), "f32"), op.convert(ids, "i32"), op.constant(np.array(0)))

        frequencies = op.constant((THETA ** -(np.arange(0, HEAD, 2, dtype=np.float32) / HEAD)).reshape(1, HEAD // 2, 1))
        turns = op.matmul(op.broadcast(frequencies, op.concat([batch, integers(HEAD // 2, 1)], 0)),
                          op.convert(op.unsqueeze(positions, integers(1)), "f32"), False, False)
        angles = op.transpose(turns, integers(0, 2, 1))
        angles = op.concat([angles, angles], -1)
        cosine, sine = (op.unsqueeze(f(angles), integers(1)) for f in (op.cos, op.sin))

        def rotated(t):
            first = op.slice(t, integers(0), integers(HEAD // 2), integers(1), integers(3))
            second = op.slice(t, integers(HEAD // 2), integers(np.iinfo(np.int64).max), integers(1), integers(3))
            turned = op.concat([op.multiply(second, op.constant(np.full((1, 1, 1, 1), -1, np.float32))), first], -1)
            return op.add(op.multiply(t, cosine), op.multiply(turned, sine))

        # Row i of the new ones sees everything up to itself.
        new = op.gather(op.shape_of(ids), integers(1), op.constant(np.array(0)))
        all_tokens = op.gather(op.shape_of(mask), integers(1), op.constant(np.array(0)))
        scalar = lambda value: op.squeeze(value, integers(0))
        index = lambda begin, end: op.range(begin, end, op.constant(np.array(1, np.int64)), "i64")
        zero = op.constant(np.array(0, np.int64))
        rows = op.unsqueeze(index(scalar(op.subtract(all_tokens, new)), scalar(all_tokens)), integers(1))
        seen = op.less_equal(op.unsqueeze(index(zero, scalar(all_tokens)), integers(0)), rows)
        bias = op.select(seen, floats(0.0), floats(np.finfo(np.float32).min))
        bias = op.broadcast(op.unsqueeze(bias, integers(0, 1)), op.concat([batch, integers(1), new, all_tokens], 0))

        sinks = []

        def remembered(name, fresh):
            info = ov.op.util.VariableInfo()
            info.data_shape, info.data_type = ov.PartialShape([-1, KV_HEADS, -1, HEAD]), ov.Type.f32
            info.variable_id = name
            variable = ov.op.util.Variable(info)
            empty = op.broadcast(floats(0.0), op.concat([batch, integers(KV_HEADS, 0, HEAD)], 0))
            past = op.gather(op.read_value(empty, variable), beams, op.constant(np.array(0)))
            whole = op.concat([past, fresh], 2)
            sinks.append(op.assign(whole, variable))
            return whole

        def shared(t):  # by the heads of a group
            wide = op.multiply(op.unsqueeze(t, integers(2)), op.constant(np.ones((1, 1, HEADS // KV_HEADS, 1, 1), np.float32)))
            return op.reshape(wide, integers(0, HEADS, -1, HEAD), True)

        for layer in range(LAYERS):
            y = norm(x)
            heads = lambda t, count: op.transpose(op.reshape(t, integers(0, 0, count, HEAD), True), integers(0, 2, 1, 3))
            q = rotated(heads(linear(y, WIDTH, WIDTH), HEADS))
            k = remembered(f"k{layer}", rotated(heads(linear(y, KV_HEADS * HEAD, WIDTH), KV_HEADS)))
            v = remembered(f"v{layer}", heads(linear(y, KV_HEADS * HEAD, WIDTH), KV_HEADS))
            attended = op.scaled_dot_product_attention(q, shared(k), shared(v), bias)
            attended = op.reshape(op.transpose(attended, integers(0, 2, 1, 3)), integers(0, 0, WIDTH), True)
            x = op.add(x, linear(attended, WIDTH, WIDTH))
            y = norm(x)
            x = op.add(x, linear(op.multiply(op.swish(linear(y, INNER, WIDTH)), linear(y, INNER, WIDTH)), WIDTH, INNER))
        last = op.slice(norm(x), integers(-1), integers(np.iinfo(np.int64).max), integers(1), integers(1))
        logits = linear(last, VOCABULARY, WIDTH, "int8" if kind == "int4" else kind)
        return ov.Model([op.result(logits)], sinks, [ids, mask, positions, beams])

    def step(self, ids, past):
        batch, new = ids.shape
        self.request.infer({"input_ids": ids, "attention_mask": np.ones((batch, past + new), np.int64),
                            "position_ids": np.tile(np.arange(past, past + new), (batch, 1)).astype(np.int64),
                            "beam_idx": np.arange(batch, dtype=np.int32)}, share_inputs=True, share_outputs=True)

    def forget(self):
        self.request.reset_state()


class Transformers:
    def __init__(self, kind, threads):
        import torch
        import transformers
        assert kind == "bf16"
        self.torch = torch
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=4096, attn_implementation="sdpa")
        self.model = transformers.LlamaForCausalLM(config).eval()
        self.about = {"transformers": transformers.__version__, "torch": torch.__version__, "weights": kind}
        self.past = None

    def step(self, ids, past):
        with self.torch.inference_mode():
            self.past = self.model(self.torch.from_numpy(ids), past_key_values=self.past, use_cache=True,
                                   logits_to_keep=1).past_key_values

    def forget(self):
        self.past = None


def prompt(peer, tokens):
    """The whole prompt at once, as these projects do it."""
    peer.forget()
    ids = random_ids(1, tokens)
    begin = time.perf_counter()
    peer.step(ids, 0)
    return tokens / (time.perf_counter() - begin)


def decode(peer, sequences, steps):
    peer.forget()
    peer.step(random_ids(sequences, CONTEXT), 0)
    peer.step(random_ids(sequences, 1), CONTEXT)
    begin = time.perf_counter()
    for step in range(steps):
        peer.step(random_ids(sequences, 1), CONTEXT + 1 + step)
    return sequences * steps / (time.perf_counter() - begin)


def main():
    import json
    name, kind = sys.argv[1].split(":")
    peer = {"openvino": OpenVino, "transformers": Transformers}[name](kind, int(sys.argv[2]))
    prompt(peer, 64)
    print(json.dumps(peer.about), flush=True)
    for line in sys.stdin:
        work, *arguments = line.split()
        print({"prompt": prompt, "decode": decode}[work](peer, *map(int, arguments)), flush=True)


if __name__ == "__main__":
    main()
