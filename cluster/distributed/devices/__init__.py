"""Device hosts: simulated devices as servers that keep ledgers, check the engine's times and talk to each other."""
