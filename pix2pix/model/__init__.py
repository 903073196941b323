"""What is computed: generators as data, the families of networks, their weights, and the lowering to operations."""
