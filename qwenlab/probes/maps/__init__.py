"""Probes of attention maps: softmax attention, and the implicit attention of DeltaNet layers."""
