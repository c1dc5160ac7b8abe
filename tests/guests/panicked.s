# A boot sector that says on its first serial port what Linux says when it panics, and does nothing more.
.code16
start:
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    $(0x7c00 + text), %si
    movw    $0x3f8, %dx
1:  lodsb
    testb   %al, %al
    jz      2f
    outb    %al, %dx
    jmp     1b
2:  cli
3:  hlt
    jmp     3b
text:
    .ascii  "Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
    .asciz  "---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
    .org    510
    .word   0xaa55
