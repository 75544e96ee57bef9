"""SEMamba, LiteAVSEMamba, their layers, the selective scan and the waveform pipeline."""
