"""What every engine has in common: the contract, the forward pass, and engines made of other engines."""
