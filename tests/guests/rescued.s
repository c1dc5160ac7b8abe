# A boot sector that writes GRUB's rescue prompt to the screen, and does nothing more.
.code16
start:
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    $(0x7c00 + text), %si
1:  lodsb
    testb   %al, %al
    jz      2f
    movb    $0x0e, %ah          # the firmware's teletype
    xorw    %bx, %bx
    int     $0x10
    jmp     1b
2:  hlt
    jmp     2b
text:
    .asciz  "\r\nerror: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> "
    .org    510
    .word   0xaa55
