"""How labels pass through each kind of aten op. An op without a rule here taints the labels that reach it."""
