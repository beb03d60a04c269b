package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"hypersdk/providers/vsphere/vspheretest"
)

const vmHelp = `also: folder=PATH datastore=NAME datacenter=NAME cpu=N memory=SIZE
      guest=ID firmware=bios|efi host=NAME ip=ADDRESS iso=PATH nics=N
      shutdown=DURATION (of the guest) stubborn (it never does) locked_drive
      off template annotation=TEXT; a comma in a value is written \,`

// parseVM reads the value of --vm.
func parseVM(text string) (vspheretest.VM, error) {
	var vm vspheretest.VM
	for _, part := range splitCommas(text) {
		key, value, _ := strings.Cut(part, "=")
		if err := setVM(&vm, key, value); err != nil {
			return vm, err
		}
	}
	if vm.Name == "" {
		return vm, errors.New("it needs a name")
	}
	return vm, nil
}

func setVM(vm *vspheretest.VM, key, value string) (err error) {
	texts := map[string]*string{
		"name": &vm.Name, "folder": &vm.Folder, "datastore": &vm.Datastore, "datacenter": &vm.Datacenter, "guest": &vm.GuestID,
		"firmware": &vm.Firmware, "host": &vm.Hostname, "iso": &vm.ISO, "annotation": &vm.Annotation,
	}
	if p, ok := texts[key]; ok {
		*p = value
		return nil
	}
	switch key {
	case "disk":
		disk, err := parseDisk(value)
		vm.Disks = append(vm.Disks, disk)
		return err
	case "cpu":
		vm.NumCPU, err = strconv.Atoi(value)
	case "nics":
		vm.NICs, err = strconv.Atoi(value)
	case "memory":
		var n int64
		n, err = parseSize(value)
		vm.MemoryMB = n >> 20
	case "ip":
		vm.Addresses = append(vm.Addresses, value)
	case "shutdown":
		err = vm.ShutdownTime.UnmarshalText([]byte(value))
	case "stubborn":
		vm.Stubborn = true
	case "locked_drive":
		vm.LockedDrive = true
	case "off":
		vm.PoweredOff = true
	case "template":
		vm.Template = true
	default:
		return fmt.Errorf("there is no property %q of a VM", key)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// parseDisk reads SIZE[:DATA[:SEED]] or the name of a file.
func parseDisk(text string) (vspheretest.Disk, error) {
	parts := strings.Split(text, ":")
	size, err := parseSize(parts[0])
	if err != nil || len(parts) > 3 { // not a size, so a file; that it is there shows when it is needed
		if text == "" {
			return vspheretest.Disk{}, errors.New("disk: it needs a size or a file")
		}
		return vspheretest.Disk{Content: vspheretest.FromFile(text)}, nil
	}
	disk := vspheretest.Disk{Size: size}
	if len(parts) == 1 {
		return disk, nil
	}
	data, err := parseSize(parts[1])
	if err != nil || data > size {
		return disk, fmt.Errorf("disk: data of %q do not fit into %s", parts[1], parts[0])
	}
	seed := uint64(1)
	if len(parts) == 3 {
		if seed, err = strconv.ParseUint(parts[2], 10, 64); err != nil {
			return disk, fmt.Errorf("disk: seed: %w", err)
		}
	}
	disk.Content = vspheretest.Generated(seed, data)
	return disk, nil
}

// parseSize reads "4GiB", "4G", "512MiB" or a number of bytes.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB")
	shift, ok := map[string]uint{
		"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40,
	}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is no size such as 4GiB", text)
	}
	return n << shift, nil
}

// parseDatastore reads NAME[:TYPE].
func parseDatastore(text string) vspheretest.Datastore {
	if i := strings.LastIndex(text, ":"); i >= 0 {
		return vspheretest.Datastore{Name: text[:i], Type: text[i+1:]}
	}
	return vspheretest.Datastore{Name: text}
}

// splitCommas splits at the commas that no backslash precedes.
func splitCommas(text string) []string {
	const comma = "\x00"
	parts := strings.Split(strings.ReplaceAll(text, `\,`, comma), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], comma, ",")
	}
	return parts
}
