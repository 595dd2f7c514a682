"""Whatever issues many engine calls and keeps a folder: experiments, run folders, workers, calibration."""
