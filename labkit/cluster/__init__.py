"""Beyond one machine: the labs as jobs of Azure ML, lab 03 over several GPUs, an endpoint."""
