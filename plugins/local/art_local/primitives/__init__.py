"""Operations on adapters, one by one: gradients, optimizer steps, weights to sample from."""
