"""The proof that curation helps, on AID's images with RSICD's captions (docs/proof.md)."""
