# The micro-guest: a firmware of its own that shows whether a processor really runs guests.
#
# QEMU maps it below 4 GiB with a jump to its first byte at the reset vector. It says on the first
# serial port, line by line, how far it came:
#
#   nestlab real   real mode, from RAM
#   long           64-bit mode with paging
#   vector         SSE2, and a VEX-coded instruction where CPUID shows BMI2 (Linux decompresses itself
#                  with these; a KVM that only emulates kernel code dies of them)
#   svm | vmx      CPUID shows hardware virtualization to guests
#   work           begins a measured amount of work: calls, memory, copies, floating point
#   done           has ended it
#
# and then resets the machine, which ends QEMU under -no-reboot. Code and descriptor tables run from
# RAM: the processor writes to descriptors, and a write to ROM leaves the fast path of KVM.
#
# Assemble: as --64 micro_guest.s -o m.o && ld -e 0 -Ttext=0 --oformat binary m.o -o micro_guest.bin

.set COM1, 0x3f8
.set BASE, 0x8000               # where it copies itself
.set TABLES, 0x1000             # page tables: PML4, PDPT, PD
.set DATA, 0x9000               # two pages for the work

.code16
start:
    cli
    cld
    xorw    %ax, %ax
    movw    %ax, %ss
    movw    %ax, %es
    movw    $0x7000, %sp
    xorw    %si, %si
    movw    $BASE, %di
    movw    $end, %cx
    cs rep movsb
    movw    %ax, %ds
    ljmpw   $0, $(BASE + ram)
ram:
    movw    $(BASE + real_text), %si
    movw    $COM1, %dx
1:  lodsb
    outb    %al, %dx
    cmpb    $10, %al
    jne     1b
    xorl    %eax, %eax          # identity map of the first 2 MiB
    movw    $TABLES, %di
    movw    $(3 * 1024), %cx
    rep stosl
    movw    $(TABLES + 0x1003), TABLES
    movw    $(TABLES + 0x2003), TABLES + 0x1000
    movw    $0x83, TABLES + 0x2000
    lgdt    BASE + gdt_pointer
    movl    %cr0, %eax
    orb     $1, %al
    movl    %eax, %cr0
    ljmpl   $8, $(BASE + protected)

.code32
protected:
    movl    $24, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    $TABLES, %eax
    movl    %eax, %cr3
    movl    $0x620, %eax        # PAE, OSFXSR, OSXMMEXCPT
    movl    %eax, %cr4
    movl    $0xc0000080, %ecx   # EFER.LME
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    $0x80000013, %eax   # PG, ET, MP, PE
    movl    %eax, %cr0
    ljmpl   $16, $(BASE + long)

gdt:
    .quad   0
    .quad   0x00cf9b000000ffff  # 8: 32-bit code
    .quad   0x00af9b000000ffff  # 16: 64-bit code
    .quad   0x00cf93000000ffff  # 24: data
gdt_pointer:
    .word   31
    .long   BASE + gdt

.code64
long:
    movl    $0x7000, %esp
    movl    $(BASE + long_text), %esi
    call    say
    movq    %rsp, %xmm0
    paddq   %xmm0, %xmm0
    movl    $7, %eax
    xorl    %ecx, %ecx
    cpuid
    btl     $8, %ebx            # BMI2
    jnc     1f
    movl    $3, %edx
    mulx    %rax, %rcx, %rbx
1:  movl    $(BASE + vector_text), %esi
    call    say
    movl    $0x80000000, %eax
    cpuid
    cmpl    $0x80000001, %eax
    jb      1f
    movl    $0x80000001, %eax
    cpuid
    btl     $2, %ecx            # SVM
    jnc     1f
    movl    $(BASE + svm_text), %esi
    call    say
1:  movl    $1, %eax
    cpuid
    btl     $5, %ecx            # VMX
    jnc     1f
    movl    $(BASE + vmx_text), %esi
    call    say
1:  movl    $(BASE + work_text), %esi
    call    say
    movl    $DATA, %ebx
    movl    $4000000, %r8d
1:  call    round
    decl    %r8d
    jnz     1b
    movl    $(BASE + done_text), %esi
    call    say
    movb    $0xfe, %al          # the keyboard controller resets the machine
    outb    %al, $0x64
1:  hlt
    jmp     1b

round:
    movl    %r8d, %eax
    andl    $0xfff, %eax
    addl    %r8d, (%rbx,%rax)
    xorl    (%rbx,%rax), %edx
    testb   $1, %dl
    jz      1f
    movq    %rbx, %rsi
    leaq    0x1000(%rbx), %rdi
    movl    $64, %ecx
    rep movsb
1:  mulps   %xmm0, %xmm1
    cvtdq2ps %xmm1, %xmm0
    ret

say:
    movl    $COM1, %edx
1:  lodsb
    outb    %al, %dx
    cmpb    $10, %al
    jne     1b
    ret

real_text:      .ascii "nestlab real\n"
long_text:      .ascii "long\n"
vector_text:    .ascii "vector\n"
svm_text:       .ascii "svm\n"
vmx_text:       .ascii "vmx\n"
work_text:      .ascii "work\n"
done_text:      .ascii "done\n"
end:
