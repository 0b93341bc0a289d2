"""The stages, one file each, in the order prepare, finetune, label, distill, evaluate; `work` is what each is given."""
