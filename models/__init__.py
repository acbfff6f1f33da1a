"""What a network is: preprocessing, stacked networks, training, ensembles and their export."""
