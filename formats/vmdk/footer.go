package vmdk

// EndsInFooter says whether a file that begins with head (512 bytes) is a streamOptimized disk in the only
// layout that every VMware product takes in: its tables come behind its grains, and a footer says where.
// qemu's, which has them in front, is one that ESXi refuses.
func EndsInFooter(head []byte) bool {
	if len(head) < sector || !isSparse(head) {
		return false
	}
	h, err := parseHeader(head[:sector])
	return err == nil && h.compressed() && h.markers() && h.gd == gdAtEnd
}
