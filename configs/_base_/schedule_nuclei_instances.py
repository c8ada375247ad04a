"""The dense models' schedule for detectors: 16k iterations of 16 tiles; in the trial of minutes,
whose tiles are whole images, of two."""
_base_ = ['schedule_nuclei.py']

mini_schedule = {'auto_scale_lr.base_batch_size': 2}
