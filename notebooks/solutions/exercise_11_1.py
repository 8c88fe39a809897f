# Exercise 11.1
rows = awq_grid(tensors_of(awq_dir), "model.layers.0.self_attn.k_proj").values().numpy()
heads = written.config().num_key_value_heads
print(f"{heads} heads with {len(rows) // heads} rows each")


def as_llama_wants(rows):
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


integers, scales, smallest = blocks("blk.0.attn_k.weight")
in_the_file = (integers * scales + smallest).reshape(rows.shape)
same_order = np.allclose(as_llama_wants(rows), in_the_file, atol=0.01)
lab.exercise("11.1", rows_as_in_the_file=same_order)
