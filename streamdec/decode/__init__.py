"""What happens to a clean epoch: bundle, encoder, evidence over repetitions, gallery."""
