package blocks_test
import ("testing";"os";"os/exec";"time";"fmt";"syscall";"runtime"
 "hypersdk/formats";"hypersdk/formats/all")
func TestZZBench(t *testing.T){
	src:="/tmp/vhd/src.raw"
	raw,_:=all.ByName("raw")
	for _, c := range [][3]string{{"vhd","vpc","force_size=on"},{"vhdx","vhdx","block_size=32M"},{"vdi","vdi","static=off"}} {
	for i:=0;i<3;i++ {
		in,_:=os.Open(src)
		st,_:=in.Stat()
		img,err:=raw.Open(t.Context(),in,st.Size(),formats.OpenOptions{})
		if err!=nil{t.Fatal(err)}
		dst:="/tmp/vhd/ours."+c[0]
		os.Remove(dst)
		var r0,r1 syscall.Rusage
		syscall.Getrusage(0,&r0)
		s:=time.Now()
		f,_:=os.Create(dst)
		fm,_:=all.ByName(c[0])
		w,err:=fm.Create(t.Context(),f,st.Size(),formats.CreateOptions{},formats.Checkpoint{})
		if err!=nil{t.Fatal(err)}
		if _,err:=formats.Copy(t.Context(),w,img,formats.CopyOptions{});err!=nil{t.Fatal(err)}
		mid:=time.Since(s)
		if err:=w.Commit(t.Context());err!=nil{t.Fatal(err)}
		f.Close()
		d:=time.Since(s)
		syscall.Getrusage(0,&r1)
		cpu:=time.Duration(r1.Utime.Nano()-r0.Utime.Nano()+r1.Stime.Nano()-r0.Stime.Nano())
		os.Remove("/tmp/vhd/q")
		s=time.Now()
		cmd:=exec.Command("qemu-img","convert","-f","raw","-O",c[1],"-o",c[2],"-W","-m","16",src,"/tmp/vhd/q")
		out,err:=cmd.CombinedOutput()
		q:=time.Since(s)
		fmt.Println(c[0],"ours",mid,d,"cpu",cpu,"qemu",q,"cpu",cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(),string(out),err)
		o,err:=exec.Command("qemu-img","compare","-f","raw","-F",c[1],src,dst).CombinedOutput()
		fmt.Print(string(o)); if err!=nil {fmt.Println(err)}
		// back
		f2,_:=os.Open(dst); st2,_:=f2.Stat()
		im2,err:=fm.Open(t.Context(),f2,st2.Size(),formats.OpenOptions{})
		if err!=nil{t.Fatal(err)}
		os.Remove("/tmp/vhd/back.raw")
		syscall.Getrusage(0,&r0)
		s=time.Now()
		f3,_:=os.Create("/tmp/vhd/back.raw")
		w3,_:=raw.Create(t.Context(),f3,st.Size(),formats.CreateOptions{},formats.Checkpoint{})
		if _,err:=formats.Copy(t.Context(),w3,im2,formats.CopyOptions{});err!=nil{t.Fatal(err)}
		b:=time.Since(s)
		syscall.Getrusage(0,&r1)
		cpu=time.Duration(r1.Utime.Nano()-r0.Utime.Nano()+r1.Stime.Nano()-r0.Stime.Nano())
		w3.Close(); f3.Close(); f2.Close()
		s=time.Now()
		os.Remove("/tmp/vhd/q.raw")
		cmd=exec.Command("qemu-img","convert","-f",c[1],"-O","raw","-W","-m","16",dst,"/tmp/vhd/q.raw")
		cmd.CombinedOutput()
		fmt.Println(c[0],"back ours",b,"cpu",cpu,"qemu",time.Since(s),"cpu",cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}}
	var m runtime.MemStats; runtime.ReadMemStats(&m); fmt.Println("sys",m.Sys>>20)
}
