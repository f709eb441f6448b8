"""Arguments of a training run: training, policy, data, adapter and evaluation; conversion of StarVLA's configurations."""
