"""Which flag switches on which file. Order here is the order of application. Nothing is imported until asked for."""

TABLE = {
    "heads": "multihead",
    "head-config": "multihead",
    "transfer-weights": "transfer",
    "freeze": "freeze",
}
