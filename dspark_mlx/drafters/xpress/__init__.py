"""XPress: a parallel backbone whose logits a small refiner corrects by the tokens before."""
