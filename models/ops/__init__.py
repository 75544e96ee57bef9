"""The selective scan, the convolutions and whole layers, made fast; `reference` defines what each must compute."""
