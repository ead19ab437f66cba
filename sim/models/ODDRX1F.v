// Model of the ECP5's pad register at double data rate: D0 while the clock is high, then D1.

module ODDRX1F (
    input  D0,
    input  D1,
    input  SCLK,
    input  RST,
    output Q
);
    reg high = 0, low = 0;
    always @(posedge SCLK) begin
        high <= D0 & ~RST;
        low <= D1 & ~RST;
    end
    assign Q = SCLK ? high : low;
endmodule
