# A boot sector that tells QEMU's pvpanic device that it has panicked, as Linux does.
.set ADDRESS, 0xcf8             # PCI configuration
.set DATA, 0xcfc
.code16
start:
    xorw    %ax, %ax
    movw    %ax, %ds
    movl    $0x80000000, %ebx   # bus 0, device 0
1:  movl    %ebx, %eax
    call    read
    cmpl    $0x00111b36, %eax   # Red Hat's pvpanic-pci
    je      2f
    addl    $0x800, %ebx
    jmp     1b
2:  leal    4(%ebx), %eax       # command: memory space on
    call    read
    orw     $2, %ax
    outl    %eax, %dx
    leal    0x10(%ebx), %eax    # its first memory region
    call    read
    andl    $-16, %eax
    movl    %eax, %edi
    cli
    lgdt    0x7c00 + gdt_pointer
    movl    %cr0, %eax          # protected mode for a moment: a segment of 4 GiB stays
    orb     $1, %al
    movl    %eax, %cr0
    movw    $8, %bx
    movw    %bx, %es
    andb    $0xfe, %al
    movl    %eax, %cr0
    movb    $1, %es:(%edi)      # PVPANIC_PANICKED
3:  hlt
    jmp     3b
read:
    movw    $ADDRESS, %dx
    outl    %eax, %dx
    movw    $DATA, %dx
    inl     %dx, %eax
    ret
gdt:
    .quad   0
    .quad   0x00cf93000000ffff
gdt_pointer:
    .word   15
    .long   0x7c00 + gdt
    .org    510
    .word   0xaa55
