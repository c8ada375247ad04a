"""Nuclei instance segmentation in H&E images: Kumar, CoNSeP and CPM-17."""
