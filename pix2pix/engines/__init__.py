"""What every engine has in common: the contract, the forward pass, and the engines that need no hardware of their own."""
