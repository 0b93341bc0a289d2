"""The training loop and what it needs: device, ranks, losses, optimizer, CUDA graphs, checkpoints, scoring many rows.
Knows no stage and no artifact layout.
"""
